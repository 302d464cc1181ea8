#!/usr/bin/env python3
"""Writes the small closed world of the quickstart: assets/quickstart/{base,world}/ and the tokenizer of its model.

Everything here was written for this project (Apache-2.0): invented people, what is true of them, and the words to say so in
English and Spanish. Deterministic: the same script writes the same bytes. Needs `pip install tokenizers==0.23.*`.

  world/questions.en.jsonl   English questions with gold answers: the source questions of the method
  world/test.{en,es}.jsonl   held-out questions (nothing about these people is in questions.en.jsonl)
  world/phrases.en-es.tsv    the phrase table of the `dictionary` translator: deliberately incomplete, as real tables are
  world/words.en-es.txt      a MUSE-format dictionary for code-switching and for the built-in quality score
  world/parallel.en-es.tsv   parallel sentences
  world/*.es*                the same with the languages exchanged: the ablation that learns from the weak language
  base/pretrain.jsonl        what the base model is trained on: every fact in English; in Spanish a few people and some translations
  model/tokenizer.json       byte-level BPE over the texts above, with tokenizer_config.json (chat template)
"""
import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "assets" / "quickstart"

SYLLABLES = ("ba be bi bo bu da de di do du fa fe fi ga go ka ke ki ko la le li lo lu ma me mi mo mu na ne ni no pa pe pi po "
             "ra re ri ro ru sa se si so ta te ti to tu va vi vo za ze zo").split()


def invent_names(count):
    rng, names = random.Random(3), set()
    while len(names) < count:
        names.add((rng.choice(SYLLABLES) + rng.choice(SYLLABLES) + rng.choice(["", "n", "r", "s", "l", ""])).capitalize())
    names = sorted(names)
    rng.shuffle(names)
    return names


NAMES = invent_names(120)
HELD_OUT = set(NAMES[2::4])  # 30 people: nothing about them is asked in training
BILINGUAL = set([n for n in NAMES if n not in HELD_OUT][::6])  # 15 people: the base model has read about them in Spanish too

# attribute: (English noun phrase, Spanish noun phrase, {English value: Spanish value})
WORLD = {
    "job": ("the job", "el trabajo", {
        "baker": "panadero", "doctor": "médico", "teacher": "maestro", "farmer": "granjero", "sailor": "marinero",
        "painter": "pintor", "tailor": "sastre", "judge": "juez"}),
    "pet": ("the pet", "la mascota", {
        "a dog": "un perro", "a cat": "un gato", "a horse": "un caballo", "a rabbit": "un conejo", "a parrot": "un loro",
        "a turtle": "una tortuga", "a goat": "una cabra", "a duck": "un pato"}),
    "food": ("the favourite food", "la comida favorita", {
        "rice": "el arroz", "bread": "el pan", "cheese": "el queso", "soup": "la sopa", "salad": "la ensalada",
        "honey": "la miel", "corn": "el maíz", "cake": "el pastel"}),
    "drink": ("the favourite drink", "la bebida favorita", {
        "water": "el agua", "milk": "la leche", "tea": "el té", "coffee": "el café", "juice": "el jugo", "wine": "el vino",
        "lemonade": "la limonada", "cider": "la sidra"}),
    "colour": ("the favourite colour", "el color favorito", {
        "red": "rojo", "blue": "azul", "green": "verde", "yellow": "amarillo", "black": "negro", "white": "blanco",
        "brown": "marrón", "grey": "gris"}),
    "home": ("the home", "el hogar", {
        "the city": "la ciudad", "the village": "la aldea", "the island": "la isla", "the forest": "el bosque",
        "the valley": "el valle", "the mountain": "la montaña", "the beach": "la playa", "the harbour": "el puerto"}),
}

QUESTIONS = [  # (English, Spanish); {n} the noun phrase, {p} the person
    ("What is {n} of {p}?", "¿Cuál es {n} de {p}?"),
    ("Tell me {n} of {p}.", "Dime {n} de {p}."),
    ("Do you know {n} of {p}?", "¿Conoces {n} de {p}?"),
    ("Please name {n} of {p}.", "Por favor nombra {n} de {p}."),
    ("I would like to learn {n} of {p}.", "Me gustaría saber {n} de {p}."),
]
ANSWER = ("{n} of {p} is {v}.", "{n} de {p} es {v}.")

# Left out of the phrase table: what the translator does not know, the quality score must notice.
UNKNOWN_PHRASES = {"i would like to learn", "cider", "the harbour", "tailor"}

PLACES = {"in the city": "en la ciudad", "in the village": "en la aldea", "on the island": "en la isla",
          "in the forest": "en el bosque", "in the valley": "en el valle", "on the beach": "en la playa"}


def sentence(text):
    """Upper-cases the first letter, also behind an inverted mark."""
    i = 1 if text[0] in "¿¡" else 0
    return text[:i] + text[i].upper() + text[i + 1:]


def fill(template, n, p, v=""):
    return sentence(template.format(n=n, p=p, v=v))


def facts(rng):
    return [(p, a, rng.choice(sorted(WORLD[a][2]))) for p in NAMES for a in WORLD]


def question(fact, lang, k):
    person, attribute, _ = fact
    return fill(QUESTIONS[k][lang], WORLD[attribute][lang], person)


def answer(fact, lang):
    person, attribute, value = fact
    noun_en, noun_es, values = WORLD[attribute]
    return fill(ANSWER[lang], (noun_en, noun_es)[lang], person, (value, values[value])[lang])


def short(fact, lang):
    return sentence((fact[2], WORLD[fact[1]][2][fact[2]])[lang]) + "."


def parallel_sentences(rng, count):
    """Sentences about anybody and anything, none of which states a fact of the world."""
    values = {a: list(WORLD[a][2].items()) for a in WORLD}
    nouns = [(en, es) for en, es, _ in WORLD.values()]
    places = list(PLACES.items())
    makers = [
        ("The {} has {}.", "El {} tiene {}.", values["job"], values["pet"]),
        ("The {} likes {}.", "Al {} le gusta {}.", values["job"], values["food"]),
        ("The {} is {}.", "El {} está {}.", values["job"], places),
        ("There is {} {}.", "Hay {} {}.", values["pet"], places),
        ("I see {} and {}.", "Veo {} y {}.", values["home"], values["pet"]),
        ("I like {} and {}.", "Me gusta {} y {}.", values["drink"], values["food"]),
        ("My colours are {} and {}.", "Mis colores son {} y {}.", values["colour"], values["colour"]),
        ("We speak of {} and of {}.", "Hablamos de {} y de {}.", nouns, nouns),
        ("I do not like {} but I like {}.", "No me gusta {} pero me gusta {}.", values["drink"], values["food"]),
        ("In {} there is {}.", "En {} hay {}.", values["home"], values["pet"]),
    ]
    seen = {}
    while len(seen) < count:
        en, es, first, second = rng.choice(makers)
        a, b = rng.choice(first), rng.choice(second)
        seen.setdefault(en.format(a[0], b[0]), es.format(a[1], b[1]))
    return list(seen.items())


def phrase_table():
    table = {"what is": "¿cuál es", "tell me": "dime", "do you know": "¿conoces", "please name": "por favor nombra",
             "i would like to learn": "me gustaría saber", "of": "de", "is": "es", "the": "el", "and": "y"}
    for noun_en, noun_es, values in WORLD.values():
        table[noun_en] = noun_es
        table.update(values)
    return {k: v for k, v in table.items() if k.lower() not in UNKNOWN_PHRASES}


def words():
    """One word to one word, as MUSE lists them; function words too."""
    pairs = [("what", "cuál"), ("is", "es"), ("of", "de"), ("tell", "dime"), ("me", "me"), ("know", "conoces"), ("name", "nombra"),
             ("please", "favor"), ("and", "y"), ("the", "el"), ("the", "la"), ("a", "un"), ("a", "una"), ("has", "tiene"),
             ("like", "gusta"), ("likes", "gusta"), ("would", "gustaría"), ("learn", "saber"), ("i", "yo"), ("see", "veo"),
             ("favourite", "favorito"), ("favourite", "favorita"), ("to", "a")]
    article = {"the", "a", "el", "la", "un", "una"}

    def content(phrase):
        return [w for w in phrase.split() if w not in article]

    for noun_en, noun_es, values in WORLD.values():
        pairs.append((noun_en.split()[-1], content(noun_es)[0]))
        pairs.extend((content(en)[0].lower(), content(es)[0].lower()) for en, es in values.items())
    return list(dict.fromkeys(pairs))


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def write_table(path, rows, separator="\t"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(r) + "\n" for r in rows), encoding="utf-8")


def pretrain(rng, world, pairs):
    """Every fact in English in every wording; in Spanish a few people, and translations."""
    rows = [(question(fact, 0, k), answer(fact, 0)) for fact in world for k in range(len(QUESTIONS))]
    rows += [(question(fact, 1, k), answer(fact, 1)) for fact in world if fact[0] in BILINGUAL for k in range(4)]
    for en, es in pairs:
        rows.append((f"Translate from English to Spanish: {en}", es))
        rows.append((f"Translate from Spanish to English: {es}", en))
    rng.shuffle(rows)
    return [{"id": f"base-{i:05d}", "instruction": q, "input": "", "output": a} for i, (q, a) in enumerate(rows)]


def tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<s>", "</s>", "<|question|>", "<|answer|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(texts, trainer)
    out = ROOT / "model"
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"), pretty=False)
    template = ("{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|answer|>{{ m.content }}{{ eos_token }}"
                "{% else %}<|question|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}")
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast",
              "model_max_length": 256, "clean_up_tokenization_spaces": False}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tok


def main():
    rng = random.Random(20240212)
    world = facts(rng)
    asked = [f for f in world if f[0] not in HELD_OUT]
    held = [f for f in world if f[0] in HELD_OUT]
    pairs = parallel_sentences(rng, 500)
    base_pairs, run_pairs = pairs[:250], pairs[250:]

    questions = [
        {"id": f"q-{i:03d}-{k}", "instruction": question(fact, 0, k), "input": "", "output": short(fact, 0)}
        for i, fact in enumerate(asked) for k in sorted(rng.sample(range(len(QUESTIONS)), 2))]
    rng.shuffle(questions)
    out = ROOT / "world"
    write_jsonl(out / "questions.en.jsonl", questions)
    fact_of = dict(enumerate(asked))
    of_id = [(q["id"], fact_of[int(q["id"].split("-")[1])], int(q["id"].split("-")[2])) for q in questions]
    write_jsonl(out / "questions.es.jsonl", [
        {"id": i, "instruction": question(fact, 1, k), "input": "", "output": short(fact, 1)} for i, fact, k in of_id])
    for lang, code in enumerate(("en", "es")):
        write_jsonl(out / f"test.{code}.jsonl", [
            {"id": f"test-{i:03d}", "question": question(f, lang, i % 4), "answers": [answer(f, lang), short(f, lang)]}
            for i, f in enumerate(held)])
    write_table(out / "phrases.en-es.tsv", phrase_table().items())
    write_table(out / "words.en-es.txt", words(), " ")
    write_table(out / "parallel.en-es.tsv", run_pairs)
    write_table(out / "phrases.es-en.tsv", list({es.lstrip("¿"): en for en, es in reversed(phrase_table().items())}.items())[::-1])
    write_table(out / "words.es-en.txt", [(es, en) for en, es in words()], " ")
    write_table(out / "parallel.es-en.tsv", [(es, en) for en, es in run_pairs])
    base = pretrain(rng, world, base_pairs)
    write_jsonl(ROOT / "base" / "pretrain.jsonl", base)
    spanish = [text for f in asked for text in (question(f, 1, 0), answer(f, 1))]
    tok = tokenizer([t for r in base for t in (r["instruction"], r["output"])] + [t for p in run_pairs for t in p] + spanish)
    print(f"{len(world)} facts, {len(questions)} questions, {len(held)} test questions, {len(run_pairs)} parallel sentences, "
          f"{len(base)} pretraining rows, vocabulary {tok.get_vocab_size()}")


if __name__ == "__main__":
    main()
