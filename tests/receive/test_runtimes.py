"""Apps of every other runtime, through the whole build, served over HTTP from the slug."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from bareku import paths
from bareku.errors import BarekuError

pytestmark = pytest.mark.slow

PHP = "<?php header('X-By: php'); echo 'php ', getenv('GREETING') ?: 'none', ' ', strtok($_SERVER['REQUEST_URI'], '?');"
NODE = (
    "const http = require('http'); const isOdd = require('is-odd');\n"
    "http.createServer((q, s) => s.end('node ' + isOdd(3))).listen(process.env.PORT, '127.0.0.1');\n"
)
PACKAGE = {
    "name": "hello",
    "version": "1.0.0",
    "scripts": {"start": "node index.js"},
    "dependencies": {"is-odd": "3.0.1"},
    "devDependencies": {"left-pad": "1.3.0"},
}
GO = """
package main

import (
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	for err == nil {
		var peer net.Conn
		if peer, err = listener.Accept(); err == nil {
			peer.Read(make([]byte, 4096))
			peer.Write([]byte("HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\ngo"))
			peer.Close()
		}
	}
}
"""


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs the program {program}")


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, Message, bytes]:
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=asked, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers, exc.read()


# static


SITE = {
    "index.html": "<h1>home</h1>" * 100,
    "about/index.html": "about",
    "app.js": "let x = 1;\n" * 200,
    ".secret": "no",
    ".well-known/ok": "yes",
}


def test_a_folder_of_files_is_served_as_browsers_like_it(bench: Any) -> None:
    packed = bench.build(SITE)
    with bench.serve(packed) as url:
        status, headers, body = fetch(f"{url}/")
        assert (status, headers["Content-Type"]) == (200, 'text/html; charset="utf-8"')
        assert body.decode() == SITE["index.html"]
        assert fetch(f"{url}/about/")[2] == b"about"
        assert fetch(f"{url}/.well-known/ok")[2] == b"yes"
        assert fetch(f"{url}/app.js", If_None_Match=fetch(f"{url}/app.js")[1]["ETag"])[0] == 304
        status, headers, body = fetch(f"{url}/app.js", Range="bytes=4-6")
        assert (status, body) == (206, b"x =")
        status, headers, body = fetch(f"{url}/app.js", Accept_Encoding="gzip")
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(body).decode() == SITE["app.js"]
        assert fetch(f"{url}/app.js", method="HEAD")[2] == b""
        assert fetch(f"{url}/app.js", method="POST")[0] == 405


def test_what_is_not_of_the_site_is_not_served(bench: Any) -> None:
    packed = bench.build({**SITE, "Staticfile": "# all\n"})
    hidden = [
        "/.secret",
        "/.bareku/serve.py",
        "/Staticfile",
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/none",
    ]
    with bench.serve(packed) as url:
        assert [fetch(url + path)[0] for path in hidden] == [404] * len(hidden)


def test_a_single_page_app_gets_its_page_for_every_path(bench: Any) -> None:
    files = {
        "web/index.html": "the page",
        "web/404.html": "not here",
        "Staticfile": "root: web\npushstate: enabled\n",
    }
    with bench.serve(bench.build(files)) as url:
        assert fetch(f"{url}/some/route")[::2] == (200, b"the page")
        assert fetch(f"{url}/missing.js")[::2] == (404, b"not here")
        assert fetch(f"{url}/Staticfile")[2] == b"the page"


def test_the_same_site_twice_is_the_same_slug(bench: Any) -> None:
    assert bench.build(SITE).sha256 == bench.build(SITE).sha256


@pytest.mark.parametrize("root", ["../..", "/etc", "none"])
def test_a_root_that_is_no_folder_of_the_app_is_refused(bench: Any, root: str) -> None:
    with pytest.raises(BarekuError, match="is not a folder of the app"):
        bench.build({"Staticfile": f"root: {root}\n"})


# procfile


def test_an_app_with_its_own_program_runs_by_its_procfile(bench: Any) -> None:
    program = (
        '#!/bin/sh\nexec python3 -m http.server --bind 127.0.0.1 --directory "$HOME/site" $PORT\n'
    )
    files = {"Procfile": "web: mine\nworker: sleep 1\n", "bin/mine": program, "site/x": "mine"}
    packed = bench.build(files, executable=["bin/mine"])
    assert packed.built.display_name == "Procfile"
    assert packed.built.process_types == {"web": "mine", "worker": "sleep 1"}
    with bench.serve(packed) as url:
        assert bench.get(f"{url}/x") == "mine"


# php


def test_a_plain_php_app_runs_with_the_linked_php(bench: Any) -> None:
    needs("php")
    packed = bench.build(
        {"public/index.php": PHP, "composer.json": '{"require": {"php": ">=7.4"}}'}
    )
    assert packed.built.runtime.startswith("php-8.")
    with bench.serve(packed) as url:
        assert bench.get(f"{url}/page") == "php none /page"
    link = bench.folder / "place" / packed.uuid / ".bareku" / "bin" / "php"
    assert str(link.readlink()).startswith("/usr/bin/php")


def test_a_photon_style_app_is_packed_as_a_phar_and_runs_from_it(bench: Any) -> None:
    needs("php")
    packer = """<?php
        // the packer's contract: package NAME --include-conf config.php
        if ($argv[1] !== 'package' || $argv[3] !== '--include-conf') exit(2);
        $phar = new Phar($argv[2] . '.phar');
        $phar->addFile($argv[4], 'config.php');
        $phar->addFromString('page.php', '<?php echo "from ", basename(Phar::running(false));');
        $phar->addFromString('main.php', '<?php $conf = require "config.php"; $router = sys_get_temp_dir()
            . "/bareku-router-" . getenv("PORT") . ".php"; file_put_contents($router,
            "<?php require \\'phar://" . Phar::running(false) . "/page.php\\';");
            passthru("exec php -S 127.0.0.1:" . getenv("PORT") . " " . $router);');
        $phar->setStub('<?php Phar::mapPhar("app.phar"); chdir(__DIR__); set_include_path("phar://app.phar");'
            . 'require "phar://app.phar/main.php"; __HALT_COMPILER();');
    """
    files = {
        "config.php": "<?php return array('name' => 'hello');",
        "composer.json": '{"name": "me/hello"}',
        "vendor/photon/photon/src/photon.php": packer,
    }
    packed = bench.build(files)
    assert packed.built.process_types == {"web": "php -d error_reporting=E_ERROR hello.phar serve"}
    with bench.serve(packed) as url:
        assert bench.get(f"{url}/") == "from hello.phar"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"index.php": "<?php echo 'x"}, "error"),
        (
            {"index.php": "<?php", "runtime.txt": "php-5.3\n"},
            "asks for PHP '5.3'; this machine has 8.",
        ),
        ({"index.php": "<?php", "composer.json": "{"}, "composer.json is not valid JSON"),
    ],
)
def test_a_php_app_that_cannot_run_is_refused(bench: Any, files: dict[str, str], said: str) -> None:
    needs("php")
    with pytest.raises(BarekuError, match=said):
        bench.build(files)


# node


def lock(folder: Path, *argv: str) -> Path:
    """The lock file that a package manager makes for PACKAGE."""
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps(PACKAGE))
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    (found,) = [path for path in folder.iterdir() if "lock" in path.name and path.is_file()]
    return found


@pytest.mark.parametrize("manager", ["npm", "yarn", "pnpm"])
def test_a_node_app_is_installed_as_its_lock_says_and_pruned(
    bench: Any, tmp_path: Path, manager: str
) -> None:
    needs("npm")
    argv = {
        "npm": ["npm", "install", "--package-lock-only"],
        "yarn": ["npx", "-y", "yarn@1.22.22", "install", "--ignore-scripts"],
        "pnpm": ["npx", "-y", "pnpm@9", "install", "--lockfile-only"],
    }[manager]
    locked = lock(tmp_path / "locked", *argv)
    files = {
        "index.js": NODE,
        "package.json": json.dumps(PACKAGE),
        locked.name: locked.read_text(),
    }
    packed = bench.build(files)
    assert f"-----> Installing the packages with {manager}." in bench.lines
    assert packed.built.process_types == {"web": "npm start"}
    with bench.serve(packed) as url:
        assert bench.get(url) == "node true"
    modules = bench.folder / "place" / packed.uuid / "node_modules"
    assert not (modules / "left-pad").exists()
    again = bench.build(files)
    assert bench.lines[0].startswith("-----> Using the packages of the last build")
    assert again.sha256 == packed.sha256
    with bench.serve(again) as url:
        assert bench.get(url) == "node true"


def test_a_build_script_has_the_tools_and_the_slug_has_its_output(bench: Any) -> None:
    needs("npm")
    package = dict(PACKAGE)
    package["scripts"] = {"build": "node make.js", "start": "node out.js"}
    make = "require('left-pad'); require('fs').writeFileSync('out.js', require('fs').readFileSync('index.js'));"
    packed = bench.build({"package.json": json.dumps(package), "index.js": NODE, "make.js": make})
    assert "-----> Running the script build." in bench.lines
    with bench.serve(packed) as url:
        assert bench.get(url) == "node true"
    assert not (bench.folder / "place" / packed.uuid / "node_modules" / "left-pad").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"dependencies": {"surely-no-such-package-of-bareku": "1"}},
            "no package called 'surely-no-such",
        ),
        ({"engines": {"node": "0.10.x"}}, "asks for Node.js '0.10.x'; this machine has "),
        ({"engines": {"node": ">=99"}}, "asks for Node.js '>=99'"),
        ({"scripts": {"build": "exit 3"}, "dependencies": {}}, "npm run build failed"),
    ],
)
def test_a_node_app_that_cannot_be_built_is_told_why(
    bench: Any, change: dict[str, object], said: str
) -> None:
    needs("npm")
    package = {**PACKAGE, "devDependencies": {}, **change}
    with pytest.raises(BarekuError) as caught:
        bench.build({"package.json": json.dumps(package), "index.js": NODE})
    assert said in caught.value.message


def test_a_lock_that_does_not_fit_is_refused(bench: Any, tmp_path: Path) -> None:
    needs("npm")
    locked = lock(tmp_path / "locked", "npm", "install", "--package-lock-only")
    package = {**PACKAGE, "dependencies": {"is-odd": "3.0.1", "is-number": "7.0.0"}}
    files = {"package.json": json.dumps(package), locked.name: locked.read_text()}
    with pytest.raises(BarekuError, match=r"package-lock.json does not fit package.json"):
        bench.build(files)


def test_a_package_json_that_is_none_is_refused(bench: Any) -> None:
    needs("node")
    with pytest.raises(BarekuError, match=r"package.json is not valid JSON"):
        bench.build({"package.json": "{'a': 1}"})


# go


@pytest.fixture(scope="module")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: Go's own library takes seconds to build."""
    needs("go")
    return tmp_path_factory.mktemp("go") / "cache"


def test_a_go_app_is_built_twice_to_the_same_program(bench: Any, go_cache: Path) -> None:
    bench.cache = go_cache
    files = {"go.mod": "module example.org/hello\n\ngo 1.19\n", "main.go": GO}
    packed = bench.build(files)
    assert packed.built.process_types == {"web": "hello"}
    with bench.serve(packed) as url:
        assert bench.get(url) == "go"
    assert bench.build(files).sha256 == packed.sha256


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"go.mod": "module x\n\ngo 1.99\n", "main.go": GO}, "asks for Go '1.99'; this machine has 1."),
        ({"go.mod": "module x\n\ngo 1.19\n", "main.go": GO.replace("net.Listen", "net.Nothing")}, "Nothing"),
        ({"go.mod": "module x\n\ngo 1.19\n", "lib.go": "package lib\n"}, "no package main"),
    ],
)  # fmt: skip
def test_a_go_app_that_cannot_be_built_is_told_why(
    bench: Any, files: dict[str, str], said: str, go_cache: Path
) -> None:
    bench.cache = go_cache
    with pytest.raises(BarekuError, match=said):
        bench.build(files)


# rust, java, ruby: their toolchains are large, so these run where they are installed for everybody


RUST = """
use std::io::{Read, Write};
fn main() {
    let port = std::env::var("PORT").unwrap();
    for stream in std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap().incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\nConnection: close\\r\\n\\r\\nrust");
    }
}
"""
CARGO = '[package]\nname = "hello"\nversion = "1.0.0"\nedition = "2021"\n'
JAVA = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class Main {
    public static void main(String[] words) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, 4);
            exchange.getResponseBody().write("java".getBytes());
            exchange.close();
        });
        server.start();
    }
}
"""
RACK = (
    "run lambda { |env| [200, {'Content-Type' => 'text/plain'}, ['ruby ' + env['PATH_INFO']]] }\n"
)


def has_system(program: str) -> bool:
    return shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") is not None


def test_a_rust_app_is_built_and_served(bench: Any) -> None:
    if not has_system("cargo"):
        pytest.skip("needs cargo for everybody: apt-get install cargo")
    packed = bench.build({"Cargo.toml": CARGO, "src/main.rs": RUST})
    assert packed.built.process_types == {"web": "hello"}
    with bench.serve(packed) as url:
        assert bench.get(url) == "rust"
    with pytest.raises(BarekuError, match="error"):
        bench.build({"Cargo.toml": CARGO, "src/main.rs": "fn main() { nothing(); }"})


def test_a_jar_that_the_app_brings_along_is_served(bench: Any, tmp_path: Path) -> None:
    if not (has_system("javac") and has_system("jar")):
        pytest.skip("needs a JDK: apt-get install default-jdk-headless")
    (tmp_path / "Main.java").write_text(JAVA)
    subprocess.run(["javac", "Main.java"], cwd=tmp_path, check=True)
    argv = ["jar", "cfe", "app.jar", "Main", *(p.name for p in tmp_path.glob("*.class"))]
    subprocess.run(argv, cwd=tmp_path, check=True)
    jar = (tmp_path / "app.jar").read_bytes()
    packed = bench.build({"system.properties": ""}, binary={"app.jar": jar})
    assert packed.built.runtime.startswith("java-")
    with bench.serve(packed) as url:
        assert bench.get(url) == "java"
    with pytest.raises(BarekuError, match=r"asks for Java '6' in system.properties"):
        bench.build({"system.properties": "java.runtime.version=1.6\n"}, binary={"app.jar": jar})


def test_a_rack_app_is_served(bench: Any) -> None:
    if not has_system("rackup"):
        pytest.skip("needs rackup: apt-get install ruby-rack ruby-webrick")
    packed = bench.build({"config.ru": RACK})
    assert packed.built.process_types == {"web": "rackup -o 127.0.0.1 -p $PORT"}
    with bench.serve(packed) as url:
        assert bench.get(f"{url}/page") == "ruby /page"
    with pytest.raises(BarekuError, match=r"asks for Ruby '1.8'"):
        bench.build({"config.ru": RACK, ".ruby-version": "ruby-1.8.7\n"})


@pytest.mark.parametrize(
    ("name", "package"),
    [("rust", "cargo"), ("java", "default-jdk"), ("ruby", "ruby"), ("go", "golang-go")],
)
def test_a_toolchain_that_is_not_here_is_told_with_its_package(
    tmp_path: Path, name: str, package: str
) -> None:
    for program in ("bash", "env", "sed", "head", "cut"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)
    argv = [str(paths.buildpacks() / name / "bin" / "runtime"), str(tmp_path)]
    done = subprocess.run(argv, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "is not installed on this machine" in done.stderr
    assert f"apt-get install {package}" in done.stderr


def test_an_app_of_two_runtimes_says_so(bench: Any, tmp_path: Path) -> None:
    from bareku.receive import build

    tree = tmp_path / "two" / "app"
    tree.mkdir(parents=True)
    for name in ("requirements.txt", "package.json", "index.html", "Procfile"):
        (tree / name).write_text("{}" if name == "package.json" else "web: x\n")
    found = build.detect(tree)
    assert (found.name, found.also) == ("python", ("node", "static"))
