#!/bin/sh
# The command that is named, from features to a page and an export, in an empty folder.
set -eu
tlpipe=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$tlpipe" extract digits --backbone mobilenet025 --weights random --image-size 32 --precision float32 --quiet
"$tlpipe" train-head --head ridge
"$tlpipe" report --quiet
"$tlpipe" export latest --format keras --quiet
where=$("$(dirname "$tlpipe")/python" -c 'import pipeline; print(pipeline.__file__)')
case $where in
    "$(dirname "$(dirname "$tlpipe")")"/*) echo "the wheel works: $where" ;;
    *) echo "not the wheel was tried, but $where" >&2; exit 1 ;;
esac
