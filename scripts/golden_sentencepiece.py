#!/usr/bin/env python3
"""Writes tests/golden/sentencepiece/: small SentencePiece models (BPE and unigram, nmt_nfkc) and the ids that transformers' tokenizers give.

pip install transformers==5.24.0 tokenizers sentencepiece
The text is Article 1 of the Universal Declaration of Human Rights in English and the paper's 16 languages, and odd cases.
"""
import json
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from transformers import NllbTokenizer, XLMRobertaTokenizer

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "sentencepiece"
OUT.mkdir(parents=True, exist_ok=True)
TEXTS = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should act towards one another in a spirit of brotherhood.",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím a mají spolu jednat v duchu bratrství.",
    "da": "Alle mennesker er født frie og lige i værdighed og rettigheder. De er udstyret med fornuft og samvittighed, og de bør handle mod hverandre i en broderskabets ånd.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю і повинні діяти у відношенні один до одного в дусі братерства.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест и следва да се отнасят помежду си в дух на братство.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä.",
    "hu": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, ésszel és lelkiismerettel bírván, egymással szemben testvéri szellemben kell hogy viseltessenek.",
    "no": "Alle mennesker er født frie og med samme menneskeverd og menneskerettigheter. De er utstyrt med fornuft og samvittighet og bør handle mot hverandre i brorskapets ånd.",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal dan hati nurani dan hendaknya bergaul satu sama lain dalam semangat persaudaraan.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "sl": "Vsi ljudje se rodijo svobodni in imajo enako dostojanstvo in enake pravice. Obdarjeni so z razumom in vestjo in bi morali ravnati drug z drugim kakor bratje.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được tạo hoá ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình bằng hữu.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "km": "មនុស្សទាំងអស់កើតមកមានសេរីភាព និងសមភាពក្នុងសេចក្តីថ្លៃថ្នូរ និងសិទ្ធិ។ មនុស្សគ្រប់រូបសុទ្ធតែមានវិចារណញ្ញាណ និងសតិសម្បជញ្ញៈ ហើយត្រូវប្រព្រឹត្តចំពោះគ្នាទៅវិញទៅមកក្នុងស្មារតីរាប់អានគ្នាជាបងប្អូន។",
}
ODD = ["ＡＢＣ１２３ ﬁne ①②", "two  spaces\tand a tab", "ｶﾀｶﾅ and カタカナ", "emoji 👍🏽 \u200b zero", "e\u0301 composed", "a", "Ünknown ꙮ ᚠ letters", "don't – “quoted”…"]


def train(kind, vocab):
    with tempfile.TemporaryDirectory() as tmp:
        corpus = Path(tmp) / "corpus.txt"
        corpus.write_text("\n".join(t for t in TEXTS.values() for _ in range(3)) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=f"{tmp}/m", model_type=kind, vocab_size=vocab, character_coverage=1.0, normalization_rule_name="nmt_nfkc",
            hard_vocab_limit=False, num_threads=1, minloglevel=2)
        return Path(f"{tmp}/m.model").read_bytes()


golden = {"transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__, "texts": [*TEXTS.values(), *ODD]}
for name, cls, kind, config in [("nllb", NllbTokenizer, "bpe", {"model_type": "m2m_100"}), ("xlm-roberta", XLMRobertaTokenizer, "unigram", {"model_type": "xlm-roberta"})]:
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    (folder / "sentencepiece.bpe.model").write_bytes(train(kind, 700))
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    tokenizer = cls.from_pretrained(folder)
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in golden["texts"]]
    golden[name] = {"size": len(tokenizer), "mask": tokenizer.convert_tokens_to_ids("<mask>"), "ids": ids,
                    "decoded": [tokenizer.decode(i, skip_special_tokens=True, clean_up_tokenization_spaces=False) for i in ids]}
    if name == "nllb":
        golden[name]["ces_Latn"] = tokenizer.convert_tokens_to_ids("ces_Latn")
    print(name, len(tokenizer), sum(i.count(3) for i in ids), "unknown of", sum(map(len, ids)))
(OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")
