//! How each proxy is told what all are told: one thread, these backends in turns, nothing logged,
//! nobody idle aborted.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::Fallible;
use crate::process;

/// What there is for a proxy.
pub(crate) struct Site<'a> {
    pub(crate) cores: &'a [usize],
    pub(crate) addr: SocketAddr,
    pub(crate) backends: &'a [SocketAddr],
    /// For its configuration.
    pub(crate) dir: &'a Path,
    /// How many it must be able to hold.
    pub(crate) pairs: usize,
}

pub(crate) fn tinylb(
    site: &Site<'_>,
    program: &Path,
    flags: &[&str],
    control: bool,
) -> Fallible<Command> {
    let mut command = process::command(site.cores, program)?;
    command.arg("--listen").arg(site.addr.to_string()).args(flags);
    for (index, backend) in site.backends.iter().enumerate() {
        command.arg("--backend").arg(format!("b{index}={backend}"));
    }
    if control {
        command.arg("--control");
    }
    Ok(command)
}

pub(crate) fn role(site: &Site<'_>, role: &str) -> Fallible<Command> {
    let mut command = process::role(site.cores, role)?;
    command.arg(site.addr.to_string()).args(site.backends.iter().map(SocketAddr::to_string));
    Ok(command)
}

pub(crate) fn haproxy(site: &Site<'_>, program: &Path, splices: bool) -> Fallible<Command> {
    let servers = site.backends.iter().enumerate();
    let servers: String =
        servers.map(|(index, backend)| format!("    server b{index} {backend}\n")).collect();
    // A pipe takes two descriptors, so there is none for those who need none.
    let pipes = if splices { "    maxpipes 100\n" } else { "" };
    let splicing =
        if splices { "    option splice-request\n    option splice-response\n" } else { "" };
    let config = format!(
        "global
    nbthread 1
    maxconn {}
{pipes}    stats socket {} level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{splicing}listen peers
    bind {}
    balance roundrobin
{servers}",
        if splices { site.pairs / 2 } else { site.pairs },
        site.dir.join("admin").display(),
        site.addr,
    );
    let file = site.dir.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut command = process::command(site.cores, program)?;
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}

pub(crate) fn nginx(site: &Site<'_>, program: &Path, module: Option<&Path>) -> Fallible<Command> {
    let module =
        module.map(|file| format!("load_module {};\n", file.display())).unwrap_or_default();
    let servers: String =
        site.backends.iter().map(|backend| format!("        server {backend};\n")).collect();
    let errors = site.dir.join("error.log");
    let config = format!(
        "{module}worker_processes 1;
daemon off;
master_process off;
pid {};
error_log {} crit;
events {{ worker_connections {}; }}
stream {{
    upstream peers {{
{servers}    }}
    server {{
        listen {};
        proxy_pass peers;
        proxy_timeout 1h;
        proxy_connect_timeout 5s;
    }}
}}
",
        site.dir.join("pid").display(),
        errors.display(),
        2 * site.pairs + 10,
        site.addr,
    );
    let file = site.dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = process::command(site.cores, program)?;
    command.arg("-p").arg(site.dir).arg("-e").arg(errors).arg("-c").arg(file);
    Ok(command)
}

pub(crate) fn pen(site: &Site<'_>, program: &Path) -> Fallible<Command> {
    let mut command = process::command(site.cores, program)?;
    let pairs = site.pairs.to_string();
    // In the foreground, in turns without regard to who the client is.
    command.args(["-f", "-r", "-c", &pairs, "-x", &pairs]).arg(site.addr.to_string());
    command.args(site.backends.iter().map(SocketAddr::to_string));
    Ok(command)
}
