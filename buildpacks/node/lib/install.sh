# shellcheck shell=bash
# Fill node_modules; sourced by bin/compile, in the app's folder.
# shellcheck disable=SC2154 # build, cache, env_dir, home and manager are bin/compile's

# package_manager: whose lock file is here
package_manager() {
    if [ -f yarn.lock ]; then echo yarn
    elif [ -f pnpm-lock.yaml ]; then echo pnpm
    else echo npm
    fi
}

# has_script NAME: package.json has a script of that name
has_script() {
    node -e 'process.exit((JSON.parse(require("fs").readFileSync("package.json", "utf8")).scripts || {})[process.argv[1]] ? 0 : 1)' "$1"
}

# modules_key: a name for the node_modules that the files lead to; nothing without a lock
modules_key() {
    local lock
    for lock in package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml; do
        [ -f "$lock" ] || continue
        ! grep -qE '"(file|link):' package.json || return 0
        { cat "$lock" package.json; [ ! -f .npmrc ] || cat .npmrc; node --version; uname -m; cat "$home"/bin/compile "$home"/lib/*; } |
            sha256sum | cut -d' ' -f1
        return
    done
}

install_packages() {
    local key is_kept="" build_script="" log=$TMPDIR/install.log
    manager=$(package_manager)
    key=$(modules_key)
    for name in heroku-postbuild build; do
        ! has_script "$name" || { build_script=$name; break; }
    done
    if [ -n "$key" ] && [ -d "$cache/modules/$key/all" ] && [ -d "$cache/modules/$key/pruned" ]; then
        is_kept=1
        step "Using the packages of the last build (the lock file is unchanged)."
        if [ -n "$build_script" ]; then
            mv "$cache/modules/$key/all" node_modules
        else
            mv "$cache/modules/$key/pruned" node_modules
        fi
    else
        step "Installing the packages with $manager."
        rm -rf node_modules
        case "$manager" in
            yarn) manager_of "$cache/tools/yarn" yarn@1.22.22 ;;
            pnpm) manager_of "$cache/tools/pnpm" pnpm@9 ;;
        esac
        # NODE_ENV comes after: with it the tools of the build would be left out
        install_with 2>&1 | tee "$log" | indent || explain "$log"
        mkdir -p node_modules
    fi
    if [ -n "$build_script" ]; then
        step "Running the script $build_script."
        (export_config_vars "$env_dir" && NODE_ENV=${NODE_ENV:-production} npm run --silent "$build_script" 2>&1) | indent ||
            fail "npm run $build_script failed; the lines above say why"
    fi
    keep_or_prune "$key" "$is_kept" "$build_script"
}

install_with() {
    case "$manager" in
        yarn)
            yarn install --frozen-lockfile --ignore-engines --production=false --non-interactive ;;
        pnpm)
            pnpm install --frozen-lockfile --prod=false --config.package-import-method=hardlink ;;
        npm)
            if [ -f package-lock.json ] || [ -f npm-shrinkwrap.json ]; then
                npm ci --include=dev
            else
                npm install --include=dev --no-package-lock
            fi ;;
    esac
}

# manager_of FOLDER PACKAGE: a package manager of its own version, kept in the cache
manager_of() {
    [ -d "$1/node_modules/.bin" ] || npm install --silent --no-save --prefix "$1" "$2" || fail "$2 cannot be fetched from the registry"
    export PATH="$1/node_modules/.bin:$PATH"
}

# keep_or_prune KEY KEPT SCRIPT: leave the app the pruned tree, and both for the next build
keep_or_prune() {
    local key=$1 both=$cache/modules/$1
    if [ -n "$2" ]; then
        [ -z "$3" ] || { mv node_modules "$both/all" && mv "$both/pruned" node_modules; }
    else
        rm -rf "$cache/modules"
        bound_cache "$cache" 2048 npm yarn pnpm
        if [ -n "$key" ]; then
            mkdir -p "$both"
            cp -al node_modules "$both/all.part"
        fi
        prune
        mkdir -p node_modules
        [ -z "$key" ] || mv "$both/all.part" "$both/all"
    fi
    [ -z "$key" ] || printf 'node_modules\tmodules/%s/pruned\n' "$key" >"$cache/.keep"
}

prune() {
    case "$manager" in
        npm) npm prune --omit=dev --silent >/dev/null 2>&1 || true ;;
        yarn) yarn install --frozen-lockfile --ignore-engines --production=true --non-interactive --ignore-scripts --offline --silent >/dev/null 2>&1 || true ;;
        pnpm) pnpm prune --prod --config.ignore-scripts=true >/dev/null 2>&1 || true ;;
    esac
}

# explain LOG: end the build with the one line that matters
explain() {
    local text name
    text=$(cat "$1")
    name=$(sed -nE "s/.*404  *(The requested resource )?'?([^ ']+)@[^ ']*'? (is not in this registry|could not be found).*/\\2/p; s/.*error Couldn't find package \"([^\"]+)\".*/\\1/p; s|.*ERR_PNPM_FETCH_404.*registry[^/]*/+[^/]*/([^:]+): .*|\\1|p" <<<"$text" | head -n 1)
    [ -z "$name" ] || fail "no package called '$name' was found in the registry; it is named in package.json"
    case "$text" in
        *"package.json and package-lock.json"*"in sync"*) fail "package-lock.json does not fit package.json: run npm install and commit it" ;;
        *"Your lockfile needs to be updated"*) fail "yarn.lock does not fit package.json: run yarn install and commit it" ;;
        *ERR_PNPM_OUTDATED_LOCKFILE*) fail "pnpm-lock.yaml does not fit package.json: run pnpm install and commit it" ;;
        *EJSONPARSE*) fail "package.json or its lock file is not valid JSON" ;;
        *EINTEGRITY*) fail "a package is not the one that the lock file names (its hash differs)" ;;
    esac
    fail "the packages of package.json could not be installed; the lines above say why"
}
