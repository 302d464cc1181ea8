#!/bin/sh
# Apertium as a resident translator (texts end with NUL) by ISO 639-3 codes, as `command` of a recipe has them: some pairs' modes are named by two letters.
case "$1" in
    eng-glg) exec apertium -z -f none en-gl ;;
    eng-epo) exec apertium -z -f none en-eo ;;
    *) exec apertium -z -f none "$1" ;;
esac
