# shellcheck shell=bash
# Fill .venv; sourced by bin/compile, in the app's folder.
# shellcheck disable=SC2154 # build, cache, env_dir, home and python are bin/compile's

# requirements_kind: which file says what the app needs
requirements_kind() {
    local file
    for file in requirements.txt pyproject.toml; do
        [ ! -f "$file" ] || { echo "$file"; return; }
    done
    echo none
}

# requirements_key FILE: a name for the venv that FILE leads to; nothing when files of the app decide it
requirements_key() {
    if [ "$1" = requirements.txt ] && grep -qE '^[[:space:]]*(-e|--editable|\.|/|file:|git\+|-f|--find-links)|@ *(file:|\.)' requirements.txt; then
        return
    fi
    if [ "$1" = pyproject.toml ] && grep -qE '^\[build-system\]' pyproject.toml; then
        return
    fi
    {
        cat "$1"
        [ "$1" != requirements.txt ] || ! grep -qE '^[[:space:]]*(-r|-c|--requirement|--constraint)' "$1" ||
            find . -maxdepth 3 \( -name '*.txt' -o -name '*.in' \) -not -path './.venv/*' -print0 | sort -z | xargs -0 sha256sum
        "$python" -VV
        uname -m
        env | grep -E '^(UV_(DEFAULT_)?INDEX|UV_FIND|PIP_(INDEX|EXTRA|FIND))' | sort
        cat "$home"/bin/compile "$home"/lib/*.sh
    } | sha256sum | cut -d' ' -f1
}

install_requirements() {
    local kind key=""
    kind=$(requirements_kind)
    [ "$kind" = none ] || key=$(requirements_key "$kind")
    if [ -n "$key" ] && [ -f "$cache/venv/$key/pyvenv.cfg" ]; then
        step "Using the packages of the last build ($kind is unchanged)."
        cp -al "$cache/venv/$key" .venv
        return
    fi
    make_venv
    case "$kind" in
        none) line "No requirements.txt or pyproject.toml: nothing to install." ;;
        *) install_from "$kind" ;;
    esac
    if [ -n "$key" ]; then
        rm -rf "$cache/venv"
        mkdir -p "$cache/venv"
        cp -al .venv "$cache/venv/$key"
    fi
}

make_venv() {
    if command -v uv >/dev/null; then
        uv venv --quiet --relocatable --python "$python" .venv || fail "cannot make a virtualenv with $python"
    else
        "$python" -m venv .venv || fail "cannot make a virtualenv with $python: is the package python3-venv installed?"
    fi
}

# install_from FILE: by uv, else by pip
install_from() {
    local log=$TMPDIR/install.log
    if command -v uv >/dev/null; then
        step "Installing the packages of $1 with uv."
        uv pip install --compile-bytecode --color never -r "$1" 2>&1 | tee "$log" | indent || explain "$1" "$log"
    else
        step "Installing the packages of $1 with pip."
        .venv/bin/python -m pip install --progress-bar off "${@/requirements.txt/-rrequirements.txt}" 2>&1 |
            tee "$log" | indent || explain "$1" "$log"
    fi
    if [ "$1" = pyproject.toml ] && grep -qE '^\[build-system\]' pyproject.toml && command -v uv >/dev/null; then
        step "Installing the app itself."
        uv pip install --compile-bytecode --color never --no-deps . 2>&1 | tee "$log" | indent || explain "$1" "$log"
    fi
}

# explain FILE LOG: end the build with the one line that matters of the installer's
explain() {
    local text name
    text=$(tr '\n' ' ' <"$2" | tr -s ' ')
    name=$(sed -nE 's/.*Because (\S+) was not found in the package registry.*/\1/p; s/.*No matching distribution found for (\S+).*/\1/p' <<<"$text" | head -n 1)
    [ -z "$name" ] || fail "no package called '$name' was found in the package index; it is named in $1"
    name=$(sed -nE 's/.*Because there is no version of (\S+) and.*/\1/p' <<<"$text" | head -n 1)
    [ -z "$name" ] || fail "there is no '$name' in the package index; it is named in $1"
    name=$(sed -nE "s/.*Couldn't parse requirement in .?$1.? at ([^ ]*).*/\\1/p" <<<"$text" | head -n 1)
    [ -z "$name" ] || fail "$1 is not a requirements file: see position $name"
    fail "the packages of $1 could not be installed; the lines above say why"
}

collect_static() {
    local disabled
    disabled=$(config_var "$env_dir" DISABLE_COLLECTSTATIC)
    [ -f manage.py ] && [ -z "$disabled" ] && .venv/bin/python -c 'import django' 2>/dev/null || return 0
    grep -qrE '^\s*STATIC_ROOT\s*=' --include='*.py' --exclude-dir=.venv . || return 0
    step "Collecting static files."
    (export_config_vars "$env_dir" && python manage.py collectstatic --noinput 2>&1) | indent ||
        fail "python manage.py collectstatic failed; set DISABLE_COLLECTSTATIC=1 to leave it out"
}
