#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Makes the manual pages: man.sh OUT DIR, with the programs in OUT and pages going to DIR/man1 ….
#
# What the pages say of options comes from the programs, what they say of the configuration and of
# policies from docs/, so that there is one text of each. A page in docs/man may have lines
#   @help PROGRAM              what its --help says
#   @section FILES "HEADING"   that section of the files of that pattern in docs/
#   @all FILE                  all of docs/FILE but its title
#   @file FILE                 a file of the repository, as it is
set -eu
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { echo "usage: man.sh OUT DIR" >&2; exit 2; }
out=$1 dir=$2

command -v go-md2man > /dev/null || {
	echo "man.sh: go-md2man is missing (Debian: go-md2man, RHEL: golang-github-cpuguy83-md2man)" >&2
	exit 1
}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# Sections become a page's; tables, which are unreadable in 80 columns, lists of terms; links
# their text, since there is nothing to follow.
body() {
	awk '
	function cells(line,   n, i) {
		gsub(/\\\|/, "\001", line)
		n = split(line, cell, "|")
		for (i = 1; i <= n; i++) { gsub(/^ +| +$/, "", cell[i]); gsub(/\001/, "|", cell[i]) }
		return n
	}
	/^```/ { code = !code; if (!code) print ""; else print ""; next }
	code { print "    " $0; next }
	{ while (match($0, /\[[^]]*\]\([^)]*\)/)) {
		link = substr($0, RSTART, RLENGTH); text = link
		sub(/^\[/, "", text); sub(/\]\(.*/, "", text)
		$0 = substr($0, 1, RSTART - 1) text substr($0, RSTART + RLENGTH)
	} }
	/^\| *-/ { next }
	/^\|/ {
		n = cells($0)
		if (!table) { table = 1; for (i = 1; i <= n; i++) head[i] = cell[i]; next }
		term = cell[2]; gsub(/`/, "**", term)
		text = ""
		for (i = 3; i < n; i++) {
			if (cell[i] == "") continue
			if (head[i] == "default") dflt = "; default " cell[i]
			else text = text (text == "" ? "" : ". ") cell[i]
		}
		text = text dflt; dflt = ""
		if (text == "") text = "."
		print "\n" term "\n:   " text "\n"
		next
	}
	{ table = 0 }
	/^#/ {
		if ($0 ~ /^## /) sub(/^## /, "# "); gsub(/`/, "")
		if ($0 ~ /^# /) $0 = toupper($0)
	}
	{ print }'
}

section() { # FILES HEADING
	: > "$tmp/section"
	for file in docs/$1; do
		awk -v heading="## $2" '$0 == heading { inside = 1; print; next }
			inside && /^## / { exit } inside { print }' "$file" >> "$tmp/section"
	done
	[ -s "$tmp/section" ] || { echo "man.sh: docs/$1 has no section $2" >&2; exit 1; }
	body < "$tmp/section"
}

expand() {
	while IFS= read -r line; do
		case $line in
		'@help '*) COLUMNS=72 "$out/${line#@help }" --help < /dev/null 2> /dev/null | sed 's/^/    /' ;;
		'@file '*) sed 's/^/    /' "${line#@file }" ;;
		'@all '*) sed 1d "docs/${line#@all }" | body ;;
		'@section '*)
			rest=${line#@section }
			heading=${rest#*\"}
			section "${rest%% *}" "${heading%\"}"
			;;
		*) printf '%s\n' "$line" ;;
		esac
	done
}

version=$("$out/lcap" --version | awk '{print $2}')

# The title's line becomes .TH here: go-md2man takes it apart at blanks. It has a second level of
# headings only at ###.
render() { # SOURCE TARGET
	{
		sed -n "1s/^% \([^(]*\)(\([0-9]\)) lcap | \(.*\)/.TH \1 \2 \"\" \"lcap $version\" \"\3\"/p" "$1"
		sed -e '1s/.*/% PAGE 1/' -e 's/^## /### /' "$1" > "$tmp/page.md"
		go-md2man -in "$tmp/page.md" | sed '/^\.TH/d'
	} > "$2"
	chmod 644 "$2"
}

for page in docs/man/*.md; do
	name=$(basename "$page" .md)
	number=${name##*.}
	mkdir -p "$dir/man$number"
	[ "$name" = lcap.1 ] && continue
	expand < "$page" > "$tmp/$name.md"
	render "$tmp/$name.md" "$dir/man$number/$name"
done

# A page for each command of lcap, from the program; the first one goes on with what we have to say.
"$out/lcap" man "$tmp/commands"
for page in "$tmp"/commands/*; do install -m 644 "$page" "$dir/man1/"; done
sed '/^@begin/d' docs/man/lcap.1.md > "$tmp/lcap.1.md"
render "$tmp/lcap.1.md" "$tmp/lcap.1.more"
sed -i '/^\.SH VERSION/,$d' "$dir/man1/lcap.1"
sed -n '/^\.SH/,$p' "$tmp/lcap.1.more" >> "$dir/man1/lcap.1"
chmod 644 "$dir/man1/lcap.1"
