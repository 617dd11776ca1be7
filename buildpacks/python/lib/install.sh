# shellcheck shell=bash
# Fill .venv; sourced by bin/compile, in the app's folder.
# shellcheck disable=SC2154 # build, cache, env_dir, home and python are bin/compile's

# requirements_kind: which file says what the app needs; a lock comes before what it was made from
requirements_kind() {
    local file
    for file in uv.lock poetry.lock Pipfile.lock requirements.txt Pipfile pyproject.toml setup.py; do
        [ ! -f "$file" ] || { echo "$file"; return; }
    done
    echo none
}

# requirements_key FILE: a name for the venv that FILE leads to; nothing when files of the app decide it
requirements_key() {
    case "$1" in
        setup.py) return 0 ;;
        requirements.txt)
            ! grep -qE '^[[:space:]]*(-e|--editable|\.|/|file:|git\+|-f|--find-links)|@ *(file:|\.|git\+)' "$1" || return 0 ;;
    esac
    # a package with its own sources in the venv is another one with each change of them
    if [ -f pyproject.toml ] && grep -qE '^\[build-system\]' pyproject.toml && [[ $1 =~ ^(uv.lock|pyproject.toml)$ ]]; then
        return 0
    fi
    {
        cat "$1"
        [ ! -f pyproject.toml ] || cat pyproject.toml
        [ "$1" != requirements.txt ] || ! grep -qE '^[[:space:]]*(-r|-c|--requirement|--constraint)' "$1" ||
            find . -maxdepth 3 \( -name '*.txt' -o -name '*.in' \) -not -path './.venv/*' -print0 | sort -z | xargs -0 sha256sum
        "$python" -VV
        uname -m
        env | grep -E '^(UV_|PIP_)' | grep -vE '^(UV_CACHE_DIR|PIP_CACHE_DIR)=' | sort
        cat "$home"/bin/compile "$home"/lib/*
    } | sha256sum | cut -d' ' -f1
}

install_requirements() {
    local kind key=""
    kind=$(requirements_kind)
    [ "$kind" = none ] || key=$(requirements_key "$kind")
    if [ -n "$key" ] && [ -f "$cache/venv/$key/pyvenv.cfg" ]; then
        step "Using the packages of the last build ($kind is unchanged)."
        mv "$cache/venv/$key" .venv
        lend "$key"
        return 0
    fi
    make_venv
    case "$kind" in
        none) line "No file names packages (requirements.txt, pyproject.toml, ...): nothing to install." ;;
        *) install_from "$kind" ;;
    esac
    mend_venv
    rm -rf "$cache/venv"
    bound_cache "$cache" 2048 uv pip
    [ -z "$key" ] || lend "$key"
}

# lend KEY: the app has the venv until it is packed, then it goes (back) into the cache
lend() {
    printf '.venv\tvenv/%s\n' "$1" >"$cache/.keep"
    # shellcheck disable=SC2064 # the key of now
    trap "[ \$? = 0 ] || { mkdir -p '$cache/venv' && mv '$build/.venv' '$cache/venv/$1'; rm -f '$cache/.keep'; }" EXIT
}

make_venv() {
    if command -v uv >/dev/null; then # which reads that its programs shall find the venv by their own place
        "$python" -m venv --without-pip .venv || fail "cannot make a virtualenv with $python"
        echo "relocatable = true" >>.venv/pyvenv.cfg
    else
        "$python" -m venv .venv || fail "cannot make a virtualenv with $python: is the package python3-venv installed?"
    fi
}

# install_from FILE
install_from() {
    local tool=pip log=$TMPDIR/install.log source=$1
    ! command -v uv >/dev/null || tool=uv
    step "Installing the packages of $1 with $tool."
    case "$1" in
        uv.lock)
            [ "$tool" = uv ] || fail "uv.lock needs the program uv, which this machine does not have"
            uv sync --locked --no-dev --no-editable --compile-bytecode --color never --python "$python" 2>&1 |
                tee "$log" | indent || explain "$1" "$log"
            return ;;
        poetry.lock | Pipfile.lock | Pipfile)
            source=$TMPDIR/requirements.txt
            "$python" "$home/lib/locked.py" requirements "$1" >"$source" 2>"$log" || fail "$(tail -n 1 "$log")" ;;
        setup.py) source=. ;;
    esac
    if [ "$source" != . ]; then
        install_with "$tool" "$1" "$source"
    fi
    if [ "$source" = . ] || { [ "$1" = pyproject.toml ] && grep -qE '^\[build-system\]' pyproject.toml; }; then
        step "Installing the app itself."
        install_with "$tool" "$1" .
    fi
}

# install_with TOOL FILE SOURCE: SOURCE is a requirements file, pyproject.toml or `.`
install_with() {
    local log=$TMPDIR/install.log what=(-r "$3")
    [ "$3" != . ] || what=(.)
    if [ "$1" = uv ]; then
        local index=() # as pip would find the wheels that the app brings along
        [ ! -d vendor ] || ! ls vendor/*.whl >/dev/null 2>&1 || index=(--find-links vendor)
        uv pip install --compile-bytecode --color never "${index[@]}" "${what[@]}" 2>&1 | tee "$log" | indent || explain "$2" "$log"
        return 0
    fi
    if [ "$3" = pyproject.toml ]; then
        "$python" -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"].get("dependencies", [])))' \
            >"$TMPDIR/requirements.txt" || fail "pyproject.toml has no [project] table"
        what=(-r "$TMPDIR/requirements.txt")
    fi
    .venv/bin/python -m pip install --no-compile --progress-bar off "${what[@]}" 2>&1 | tee "$log" | indent || explain "$2" "$log"
}

# mend_venv: what the installers leave that would not work elsewhere
mend_venv() {
    local script first
    if command -v uv >/dev/null && compgen -G '.venv/lib/python3*/site-packages/gunicorn-[12][09].[0-9].[0-9].dist-info' >/dev/null; then
        uv pip install --quiet --compile-bytecode 'setuptools<81' # those import pkg_resources
    fi
    command -v uv >/dev/null && return
    "$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash .venv/lib >/dev/null 2>&1 || true
    for script in .venv/bin/*; do # pip writes the path of the build into each script
        { [ -f "$script" ] && [ ! -L "$script" ] && IFS= read -r first <"$script"; } 2>/dev/null || continue
        case "$first" in
            "#!"*"/.venv/bin/python"*)
                { relocatable_head; tail -n +2 "$script"; } >"$script.new"
                chmod 755 "$script.new"
                mv "$script.new" "$script" ;;
        esac
    done
}

# relocatable_head: first lines that find the interpreter beside the script; sh and Python read both
relocatable_head() {
    cat <<'HEAD'
#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/python "$0" "$@"
' '''
HEAD
}

# explain FILE LOG: end the build with the one line that matters of the installer's
explain() {
    local text name
    text=$(tr '\n' ' ' <"$2" | tr -s ' ')
    name=$(sed -nE 's/.*Because (\S+) was not found in the package registry.*/\1/p; s/.*No matching distribution found for (\S+).*/\1/p' <<<"$text" | head -n 1)
    [ -z "$name" ] || fail "no package called '$name' was found in the package index; it is named in $1"
    name=$(sed -nE 's/.*Because there is no version of (\S+) and.*/\1/p' <<<"$text" | head -n 1)
    [ -z "$name" ] || fail "there is no '$name' in the package index; it is named in $1"
    case "$text" in
        *"needs to be updated, but"*) fail "$1 does not fit pyproject.toml: run uv lock and commit it" ;;
        *"ash mismatch"*) fail "a package is not the one that $1 locks (its hash differs)" ;;
        *"Failed to parse"* | *"Couldn't parse"* | *"Invalid requirement"* | *"error: Unexpected"*) fail "$1 cannot be read; the lines above say where" ;;
    esac
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
