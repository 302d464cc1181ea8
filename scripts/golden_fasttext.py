"""Golden files for fastText's models: tests/golden/fasttext/*.bin, *.ftz and predictions.json.

    pip install fasttext-numpy2-wheel==0.9.2 && python scripts/golden_fasttext.py

    python scripts/golden_fasttext.py MODEL TEXTS > PREDICTIONS     (label, probability, text: for the test of a real model)

Tiny models over the sentences below, one for each way of scoring labels, of cutting words and of storing vectors; what `fasttext` predicts with them.
"""
import json
import os
import sys
import tempfile

import fasttext

OUT = os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "fasttext")
SENTENCES = {
    "eng_Latn": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience. The water is cold today.",
    "spa_Latn": "Todos los seres humanos nacen libres e iguales en dignidad y derechos. El agua está fría hoy. La casa es muy grande.",
    "deu_Latn": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Das Wasser ist heute kalt. Das Haus ist sehr groß.",
    "ces_Latn": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Voda je dnes studená. Dům je velmi velký.",
    "rus_Cyrl": "Все люди рождаются свободными и равными в своём достоинстве и правах. Вода сегодня холодная. Дом очень большой.",
    "swh_Latn": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Maji ni baridi leo. Nyumba ni kubwa sana.",
    "ibo_Latn": "A mụrụ mmadụ nile n'ohere nakwa nha anya ugwu na ikike. Mmiri na-ajụ oyi taa.",
}
TEXTS = [
    "The house is cold.", "La casa está fría hoy", "Das Haus ist kalt", "Dům je studený", "Дом холодный", "Nyumba ni baridi", "Mmiri na-ajụ oyi",
    "unknown words only xyzzy", "日本語", "__label__eng_Latn the water", "", "two\nlines of text", "naïve café ﬁ 👍",
]
MODELS = {
    "softmax": dict(loss="softmax", minn=2, maxn=4, wordNgrams=1, bucket=300, dim=8),
    "tree": dict(loss="hs", minn=2, maxn=4, wordNgrams=1, bucket=300, dim=8),
    "words": dict(loss="softmax", minn=0, maxn=0, wordNgrams=3, bucket=200, dim=5),
    "ova": dict(loss="ova", minn=1, maxn=3, wordNgrams=2, bucket=100, dim=4),
}


def predictions(model, texts):
    model = fasttext.load_model(model)
    for text in open(texts, encoding="utf-8"):
        text = text.rstrip("\n")
        labels, probabilities = model.predict(text)
        if labels and "\t" not in text:
            print(labels[0], f"{probabilities[0]:.7f}", text, sep="\t")


def main():
    if len(sys.argv) == 3:
        return predictions(*sys.argv[1:])
    os.makedirs(OUT, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as f:
        for i, (label, text) in enumerate(SENTENCES.items()):
            for sentence in text.split(". ") * (1 + i):
                f.write(f"__label__{label} {sentence}\n")
    found = {}

    def record(name, model):
        found[name] = [
            [p[0][1], p[0][0]] if p else [None, None] for p in (model.f.predict(t.replace("\n", " ") + "\n", 1, 0.0, "strict") for t in TEXTS)
        ]

    for name, args in MODELS.items():
        model = fasttext.train_supervised(f.name, epoch=40, lr=0.5, thread=1, verbose=0, seed=1, **args)
        model.save_model(os.path.join(OUT, name + ".bin"))
        record(name + ".bin", model)
    for name, args in {"quantised": dict(qnorm=False, dsub=2), "quantised_norm_pruned": dict(qnorm=True, cutoff=280, dsub=3, retrain=True, epoch=20, lr=0.5, thread=1)}.items():
        model = fasttext.train_supervised(f.name, epoch=40, lr=0.5, thread=1, verbose=0, seed=1, loss="hs" if "norm" in name else "softmax", minn=2, maxn=4, bucket=500, dim=8)
        model.quantize(input=f.name, **args)
        model.save_model(os.path.join(OUT, name + ".ftz"))
        record(name + ".ftz", model)
    json.dump({"texts": TEXTS, "predictions": found}, open(os.path.join(OUT, "predictions.json"), "w"), ensure_ascii=False, indent=1)


main()
