# shellcheck shell=bash
# The config vars of the app, one file each in ENV_DIR.

# config_var ENV_DIR NAME: its value, nothing when it is not set
config_var() { [ ! -f "$1/$2" ] || cat "$1/$2"; }

# export_config_vars ENV_DIR: into the environment, except what would change the build's tools
export_config_vars() {
    local file name
    for file in "$1"/*; do
        name=${file##*/}
        [ -f "$file" ] || continue
        case "$name" in
            PATH | HOME | TMPDIR | IFS | BASH_ENV | ENV | LD_* | GIT_* | PYTHONHOME | PYTHONPATH | CPATH | CPPATH | LIBRARY_PATH | LANG) continue ;;
        esac
        export "$name=$(cat "$file")"
    done
}
