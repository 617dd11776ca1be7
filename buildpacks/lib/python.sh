# shellcheck shell=bash
# Which Python an app gets, and what its requirements are.

# wanted_python BUILD: `3.11` or `3.11.4` as the app asks for, nothing when it does not ask
wanted_python() {
    local text=""
    if [ -f "$1/.python-version" ]; then
        text=$(grep -vE '^[[:space:]]*(#|$)' "$1/.python-version" | head -n 1)
    elif [ -f "$1/runtime.txt" ]; then
        text=$(head -n 1 "$1/runtime.txt")
    elif [ -f "$1/Pipfile.lock" ]; then
        text=$(sed -nE 's/.*"python_version": *"([0-9.]+)".*/\1/p' "$1/Pipfile.lock" | head -n 1)
    fi
    printf '%s' "$text" | tr -d '[:space:]' | sed -E 's/^(python|cpython)-?//'
}

# pythons: the versions on this machine that everybody may run, `3.11 /usr/bin/python3.11` a line
pythons() {
    local program version
    for program in /usr/bin/python3.[0-9]* /usr/local/bin/python3.[0-9]*; do
        version=${program##*/python}
        case "$version" in *[!0-9.]*) continue ;; esac
        [ -x "$program" ] && printf '%s %s\n' "$version" "$program"
    done
    return 0
}

# choose_python BUILD: the program to use; fails with the choices when what is asked for is not here
choose_python() {
    local wanted minor found full
    wanted=$(wanted_python "$1")
    if [ -z "$wanted" ]; then
        [ -x /usr/bin/python3 ] || { echo "no Python for apps: install the package python3" >&2; return 1; }
        readlink -f /usr/bin/python3
        return
    fi
    minor=$(printf '%s' "$wanted" | cut -d. -f1,2)
    found=$(pythons | awk -v v="$minor" '$1 == v { print $2; exit }')
    [ "$minor" != 3 ] || found=$(readlink -f /usr/bin/python3)
    if [ -z "$found" ]; then
        echo "the app asks for Python '$wanted'; this machine has $(pythons | awk '{ printf "%s%s", s, $1; s = ", " }')" >&2
        return 1
    fi
    full=$("$found" -c 'import platform; print(platform.python_version())')
    case "$wanted" in
        *.*.*)
            if [ "$wanted" != "$full" ]; then
                echo "the app asks for Python '$wanted'; this machine has $full: write $minor in .python-version" >&2
                return 1
            fi
            ;;
    esac
    printf '%s\n' "$found"
}
