# shellcheck shell=bash
# Which PHP an app gets: several versions may be installed side by side as /usr/bin/phpX.Y.

# wanted_php BUILD: `=8.2`, `^8.2` or `>=8.2` as runtime.txt or composer.json asks for, else nothing
wanted_php() {
    if [ -f "$1/runtime.txt" ]; then
        head -n 1 "$1/runtime.txt" | tr -d '[:space:]' | sed -E 's/^php-?([0-9]+\.[0-9]+).*/=\1/'
    elif [ -f "$1/composer.json" ]; then
        sed -nE 's/.*"php"[[:space:]]*:[[:space:]]*"[[:space:]]*(>=|[\^~])?[[:space:]]*v?([0-9]+(\.[0-9]+)?).*/\1 \2/p' "$1/composer.json" |
            head -n 1 | awk '{ if (NF == 1) print "^" $1; else print ($1 == ">=" ? ">=" : "^") $2 }'
    fi
}

# phps: `8.2 /usr/bin/php8.2` a line, newest first; phpfarm's folders too
phps() {
    local program
    for program in /usr/bin/php[0-9].[0-9]* /usr/local/bin/php[0-9].[0-9]* /opt/phpfarm/inst/bin/php-[0-9]*; do
        [ -x "$program" ] && printf '%s %s\n' "$(basename "$program" | sed -E 's/^php-?//' | cut -d. -f1,2)" "$program"
    done | sort -Vr
}

# choose_php BUILD: the program; fails with the choices when none fits
choose_php() {
    local wanted found
    wanted=$(wanted_php "$1")
    found=$(phps | awk -v wanted="$wanted" '
        BEGIN { how = wanted; sub(/[0-9].*/, "", how); least = substr(wanted, length(how) + 1); split(least, w, ".") }
        {
            split($1, h, ".")
            newer = h[1] > w[1] + 0 || (h[1] == w[1] && h[2] + 0 >= w[2] + 0)
            if (how == "" || (how == "=" && $1 == least) || (how == ">=" && newer) || (how == "^" && newer && h[1] == w[1])) { print $2; exit }
        }')
    if [ -z "$found" ]; then
        [ -n "$(phps)" ] || { echo "PHP is not installed on this machine: apt-get install php-cli" >&2; return 1; }
        echo "the app asks for PHP '${wanted#=}'; this machine has $(phps | awk '{ printf "%s%s", s, $1; s = ", " }')" >&2
        return 1
    fi
    printf '%s\n' "$found"
}
