#!/bin/dash
# Become one supervised process: hold its lock, note its pid, enter its confinement, exec it.
# The worker may die at any moment, so the record of a process is made by the process itself, under
# a lock that lives as long as its tree: nothing can be started twice, nothing can be forgotten.
# The worker passes this text to `sh -c`, since the private /tmp may hide any file.
# usage: sh -c TEXT diprocd-launch TEXT STAGE DIR NOFILE CGROUPS SLUG DATA CWD UID GID COMMAND...
#   CGROUPS: folders separated by ":"; SLUG: image or folder to show at /app; DATA: folder to show at
#   /data; UID, GID: numbers; "-" leaves a step out. Exit 75: another has the lock; 71: see DIR/error.
# The process's environment comes as shell text on fd 8 and is read after root is given up, so that
# no variable of an app can change what this script does before.
set -eu
script=$1 stage=$2
shift 2
dir=$1 nofile=$2 cgroups=$3 slug=$4 data=$5 cwd=$6 uid=$7 gid=$8
fail() {
    printf '%s\n' "$*" >&7
    exit 71
}
case $stage in
outside)
    exec 9>>"$dir/lock"
    flock -n 9 || exit 75
    [ "/proc/$$/fd/9" -ef "$dir/lock" ] || exit 75 # the folder was removed meanwhile
    exec 7>"$dir/error" 8<"$dir/env"
    read -r stat <"/proc/$$/stat"
    # shellcheck disable=SC2086 # the fields after the name, whatever the name holds
    start=$(set -- ${stat##*) } && shift 19 && printf '%s' "$1")
    printf '%s %s\n' "$$" "$start" >"$dir/pid" || fail "cannot write the pid file: ENOSPC"
    IFS=:
    for group in $cgroups; do
        [ "$group" = - ] || echo 0 >"$group/cgroup.procs" || fail "cannot join the cgroup $group"
    done
    unset IFS
    ulimit -Sn "$nofile" 2>/dev/null || fail "cannot set the limit of open files to $nofile"
    [ "$slug" = - ] || exec unshare -m --propagation private /bin/sh -c "$script" diprocd-launch "$script" inside "$@"
    ;;
inside)
    if [ -d "$slug" ]; then
        { mount --bind "$slug" /app && mount -o remount,bind,ro,nosuid,nodev /app; } || fail "cannot show $slug at /app"
    else
        mount -t squashfs -o loop,ro,nosuid,nodev "$slug" /app || fail "cannot mount the slug $slug"
    fi
    [ "$data" = - ] || mount --bind "$data" /data || fail "cannot show $data at /data"
    mount -t tmpfs -o nosuid,nodev,mode=1777,size=25% tmpfs /tmp || fail "cannot mount a private /tmp"
    ;;
esac
if [ "$stage" != last ] && [ "$uid" != - ]; then
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
        -- /bin/sh -c "$script" diprocd-launch "$script" last "$@"
fi
cd "$cwd" 2>/dev/null || fail "cannot enter the folder $cwd: may its user pass every folder above it?"
shift 8
unset script stage dir nofile cgroups slug data cwd uid gid stat start OLDPWD
eval "$(cat <&8)"
command -v -- "$1" >/dev/null || fail "cannot run $1: ENOENT"
exec 7>&- 8<&-
exec "$@"
