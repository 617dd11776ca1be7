# shellcheck shell=bash
# What a buildpack prints, in the contract's forms.

step() { printf -- '-----> %s\n' "$*"; }
line() { printf '       %s\n' "$*"; }
warn() { printf ' !     %s\n' "$*"; }

# indent: stdin to stdout, seven blanks before each line
indent() { sed -u 's/^/       /'; }

# fail MESSAGE: the reason of a failed build is the last ` !` line
fail() {
    printf ' !\n ! %s\n' "$*"
    exit 1
}
