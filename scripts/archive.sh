#!/usr/bin/env bash
# An archive of the program for this kind of machine: the binary (which knows the commit), recipes, the quickstart's model, completions, licence.
# scripts/archive.sh [FILE.tar.xz]; default target/sdrrl-VERSION-ARCH.tar.xz. An existing file is not replaced.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"name":"sdrrl","version":"\([^"]*\)".*/\1/p')
name=sdrrl-$version-$(uname -m)
out=${1:-target/$name.tar.xz}
if [ -e "$out" ]; then
    echo "$out exists: remove it, or name another file" >&2
    exit 1
fi
commit=$(git rev-parse --short HEAD)
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    commit=$commit-changed
fi
SDRRL_COMMIT=$commit cargo build --release
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/$name/completions"
cp target/release/sdrrl README.md LICENSE CHANGELOG.md "$stage/$name/"
cp -r --parents recipes docs assets/quickstart assets/README.md "$stage/$name/"
for shell in bash zsh fish; do
    target/release/sdrrl completions $shell > "$stage/$name/completions/sdrrl.$shell"
done
tar -C "$stage" -cJf "$out.partial" "$name"
mv "$out.partial" "$out"
echo "$out: $(du -h "$out" | cut -f1), commit $commit"
