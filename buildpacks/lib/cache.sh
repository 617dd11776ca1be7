# shellcheck shell=bash
# The cache of an app stays for ever; so somebody must see that it does not grow for ever.

# bound_cache CACHE MEGABYTES NAME...: remove these of its folders when the whole is larger
bound_cache() {
    local cache=$1 most=$2 name
    shift 2
    [ "$(du -sm "$cache" | cut -f1)" -gt "$most" ] || return 0
    for name; do rm -rf "${cache:?}/$name"; done
}
