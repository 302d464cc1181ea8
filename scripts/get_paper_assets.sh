#!/usr/bin/env bash
# The files of recipes/paper-llama2-7b.toml and recipes/paper-seallm.toml: what they are, where their makers publish them, under which licence, and what is there already.
#   scripts/get_paper_assets.sh               lists them
#   scripts/get_paper_assets.sh FOLDER        lays out, under assets/paper (ignored by git), what lies in FOLDER under its published name; nothing is downloaded
# Models are looked up in the Hugging Face cache: `hf download NAME` brings one there. Some are gated: their pages ask for consent first.
set -euo pipefail
fail() { echo "get_paper_assets.sh: $1" >&2; exit 1; }
[ $# -le 1 ] || fail "one folder was expected, not $#: names with spaces need quotes"
from=
if [ $# -eq 1 ]; then
    [ -d "$1" ] || fail "there is no folder $1"
    from=$(cd "$1" && pwd)
fi
cd "$(dirname "$0")/.."
out=assets/paper
languages=(cs da uk bg fi hu nb id ja ko pt sl vi pl th km)
flores=(ces_Latn dan_Latn ukr_Cyrl bul_Cyrl fin_Latn hun_Latn nob_Latn ind_Latn jpn_Jpan kor_Hang por_Latn slv_Latn vie_Latn pol_Latn tha_Thai khm_Khmr)
# XL-Sum's names of the languages that it has.
declare -A summaries=([en]=english [uk]=ukrainian [id]=indonesian [ja]=japanese [ko]=korean [pt]=portuguese [vi]=vietnamese [th]=thai)

# what | published as | where | licence
assets='model | meta-llama/Llama-2-7b-hf | hf download (gated) | Llama 2 Community License
model | SeaLLMs/SeaLLM-7B-v2 | hf download | SeaLLMs Terms of Use
translator | facebook/nllb-200-3.3B | hf download | CC-BY-NC-4.0
estimator | Unbabel/wmt22-cometkiwi-da, and config.json, tokenizer of microsoft/infoxlm-large | hf download (gated), then sdrrl import | CC-BY-NC-SA-4.0, MIT
questions | alpaca_data.json (52,002 rows) | Stanford Alpaca, tatsu-lab/stanford_alpaca | CC-BY-NC-4.0
French arm | alpaca.fr.json, fr-XX.txt, fr-XX.tsv: French questions, dictionaries, parallel text | unknown in the paper; recipes/paper-ablations.toml needs them | as their sources
dictionaries | en-XX.txt (no is Norwegian; none for km) | MUSE, facebookresearch/MUSE | CC-BY-NC-4.0
parallel text | en-XX.tsv: source, tab, target | unknown in the paper; OPUS-100 (Helsinki-NLP/opus-100) is taken | as its sources
Belebele | eng_Latn.jsonl ... | data set facebook/belebele | CC-BY-SA-4.0
FLORES-200 | devtest/eng_Latn.devtest ... | flores200_dataset.tar.gz, facebookresearch/flores | CC-BY-SA-4.0
XL-Sum | english_test.jsonl ... | data set csebuetnlp/xlsum, LANGUAGE_XLSum_v2.0.tar.bz2 | CC-BY-NC-SA-4.0
MKQA | mkqa.jsonl.gz | apple/ml-mkqa | CC-BY-SA-3.0'

cache=${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}
there() { # what it has of a kind of asset
    case $1 in
        model | translator | estimator)
            local name=${2%%,*}
            [ -d "$cache/models--${name//\//--}" ] && echo yes || echo no ;;
        questions) [ -e $out/alpaca.en.json ] && echo yes || echo no ;;
        "French arm") count "$out/alpaca.fr.json" "$out/dictionaries/fr-*.txt" "$out/parallel/fr-*.tsv" ;;
        dictionaries) count "$out/dictionaries/en-*.txt" ;;
        "parallel text") count "$out/parallel/en-*.tsv" ;;
        Belebele) count "$out/belebele/*.jsonl" ;;
        FLORES-200) count "$out/flores/devtest/*.devtest" ;;
        XL-Sum) count "$out/xl-sum/*.jsonl" ;;
        MKQA) [ -e $out/mkqa.jsonl.gz ] && echo yes || echo no ;;
    esac
}
count() { for pattern; do compgen -G "$pattern" || true; done | wc -l; }

# lay NAME-ANYWHERE-IN-FOLDER TARGET: a link, if the file is there and the place is free.
lay() {
    local found=() file target=$out/$2
    # What is laid out already (FOLDER may hold assets/paper) is not found again.
    while IFS= read -r file; do
        [ "$file" -ef "$target" ] || found+=("$file")
    done < <(find -L "$from" -path "$PWD/$out" -prune -o -name "$1" -type f -print 2> >(grep -v "loop detected" >&2) | sort)
    [ ${#found[@]} -gt 0 ] || return 0
    for file in "${found[@]:1}"; do
        cmp -s "$file" "${found[0]}" || fail "${found[0]} and $file differ: which is $target? Leave one of them in $from"
    done
    if [ -e "$target" ]; then
        cmp -s "${found[0]}" "$target" && return 0
        fail "$target is there and is not ${found[0]}: remove one of them"
    fi
    [ ! -e $out ] || [ -d $out ] || fail "$out is a file: a folder was expected"
    mkdir -p "$(dirname "$target")"
    ln -sfn "${found[0]}" "$target"
}

if [ -n "$from" ]; then
    for archive in "$from"/flores200_dataset.tar.gz "$from"/*_XLSum_v2.0.tar.bz2; do
        [ -e "$archive" ] || continue
        folder=${archive%.tar.*}
        [ ! -d "$folder" ] || continue
        partial=$(mktemp -d "$folder.XXXXXX") || fail "$from cannot be written: $archive was to be unpacked there"
        tar -xf "$archive" -C "$partial" && mv "$partial" "$folder" || { rm -rf "$partial" && fail "could not unpack $archive"; }
    done
    lay alpaca_data.json alpaca.en.json
    lay alpaca.fr.json alpaca.fr.json
    lay mkqa.jsonl.gz mkqa.jsonl.gz
    lay eng_Latn.jsonl belebele/eng_Latn.jsonl
    lay eng_Latn.devtest flores/devtest/eng_Latn.devtest
    for i in "${!languages[@]}"; do
        code=${languages[$i]}
        muse=$code; [ "$code" != nb ] || muse=no
        lay "en-$muse.txt" "dictionaries/en-$code.txt"
        lay "en-$code.tsv" "parallel/en-$code.tsv"
        lay "fr-$muse.txt" "dictionaries/fr-$code.txt"
        lay "fr-$code.tsv" "parallel/fr-$code.tsv"
        lay "${flores[$i]}.jsonl" "belebele/${flores[$i]}.jsonl"
        lay "${flores[$i]}.devtest" "flores/devtest/${flores[$i]}.devtest"
    done
    for code in "${!summaries[@]}"; do
        lay "${summaries[$code]}_test.jsonl" "xl-sum/$code.jsonl"
    done
fi
while IFS='|' read -r what name where licence; do
    what=${what% } name=${name# } name=${name% } where=${where# } where=${where% }
    printf '%-14s %s\n%14s %s;%s; there: %s\n' "$what" "$name" "" "$where" "$licence" "$(there "$what" "$name")"
done <<<"$assets"
