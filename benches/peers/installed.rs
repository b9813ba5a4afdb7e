//! Which proxies there are on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Fallible;
use crate::contenders::{Contender, Kind};

/// All there might be, in the order of the table.
pub(crate) const NAMES: [&str; 10] = [
    "tinylb",
    "tinylb-splice",
    "bare-relay",
    "tokio-twin",
    "haproxy",
    "haproxy-splice",
    "nginx",
    "pen",
    "no-keepalive",
    "idle-timeout",
];

/// All that can be run; why others cannot is told.
pub(crate) fn contenders() -> Fallible<Vec<Contender>> {
    let tinylb = build_tinylb(&[])?;
    let mut found = vec![
        Contender::new("tinylb", "tinylb", Kind::Tinylb { program: tinylb.clone(), flags: &[] }),
        Contender::new("bare relay", "bare-relay", Kind::Role("bare-relay")),
        Contender::new("tokio twin", "tokio-twin", Kind::Role("tokio-twin")),
    ];
    if cfg!(target_os = "linux") {
        // Elsewhere than the first, which it would replace.
        let dir = tinylb.with_file_name("splice");
        let target_dir = dir.to_string_lossy();
        let program = build_tinylb(&["--features", "splice", "--target-dir", &target_dir])?;
        let kind = Kind::Tinylb { program, flags: &[] };
        found.insert(1, Contender::new("tinylb, splicing", "tinylb-splice", kind));
    }
    found.extend(find_haproxy());
    found.extend(find_nginx());
    found.extend(find_pen());
    let mut variant = |title, name, flags| {
        found.push(Contender::new(title, name, Kind::Tinylb { program: tinylb.clone(), flags }));
    };
    variant("tinylb --no-keepalive", "no-keepalive", &["--no-keepalive"]);
    variant("tinylb --idle-timeout 3600", "idle-timeout", &["--idle-timeout", "3600"]);
    Ok(found)
}

fn find_haproxy() -> Vec<Contender> {
    let Some(program) = installed("haproxy") else { return Vec::new() };
    // "HAProxy version 2.6.12-1 2023/12/16 - https://haproxy.org/"
    let said = output(&program, &["-v"]);
    let version = said.split_whitespace().nth(2).map(|version| format!("HAProxy {version}"));
    [("HAProxy", "haproxy", false), ("HAProxy, splicing", "haproxy-splice", true)]
        .map(|(title, name, splices)| Contender {
            version: version.clone(),
            ..Contender::new(title, name, Kind::Haproxy { program: program.clone(), splices })
        })
        .into()
}

fn find_nginx() -> Option<Contender> {
    let program = installed("nginx")?;
    let said = output(&program, &["-V"]);
    let words: Vec<_> = said.split_whitespace().collect();
    let module = if words.contains(&"--with-stream") {
        None
    } else {
        let dir = words.iter().find_map(|word| word.strip_prefix("--modules-path="));
        let module = dir
            .map(|dir| Path::new(dir).join("ngx_stream_module.so"))
            .filter(|file| file.is_file());
        if module.is_none() {
            eprintln!("nginx has no stream module here and is left out");
        }
        Some(module?)
    };
    let version = words.iter().find_map(|word| word.strip_prefix("nginx/"));
    let version = version.map(|version| format!("nginx {version}"));
    Some(Contender {
        version,
        ..Contender::new("nginx stream", "nginx", Kind::Nginx { program, module })
    })
}

fn find_pen() -> Option<Contender> {
    let program = installed("pen")?;
    // It does not tell its version, but who installed it may know.
    let said = output(Path::new("dpkg-query"), &["-W", "-f", "${Version}", "pen"]);
    let version = said.starts_with(char::is_numeric).then(|| format!("pen {said}"));
    Some(Contender { version, ..Contender::new("pen", "pen", Kind::Pen { program }) })
}

fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where servers live is not in everybody's PATH.
    let also = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let program = std::env::split_paths(&path)
        .chain(also)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if program.is_none() {
        eprintln!("{name} is not installed and is left out");
    }
    program
}

/// All that it says, on stdout and then on stderr.
fn output(program: &Path, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).stdin(Stdio::null()).output() else {
        return String::new();
    };
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
}

/// `cargo bench` does not build it.
fn build_tinylb(flags: &[&str]) -> Fallible<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "tinylb-cli",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(flags)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("tinylb-cli does not build".into());
    }
    let messages = String::from_utf8(output.stdout)?;
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = artifacts.filter(|artifact| artifact["executable"].is_string());
    let program = programs.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from));
    Ok(program.ok_or("cargo does not say where it put tinylb")?)
}
