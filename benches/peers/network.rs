//! A network of the run's own: loopback alone, by default with Reno, so that neither the machine's
//! traffic nor pacing blurs figures.

use std::fs;

use crate::Fallible;

/// Moves this process, and what it starts, there. Says why not if it cannot.
#[cfg(target_os = "linux")]
pub(crate) fn move_to_own(congestion_control: &str) -> Fallible<()> {
    use nix::sched::{CloneFlags, setns, unshare};
    use std::process::Command;

    let former = fs::File::open("/proc/self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|err| format!("a network namespace of its own: {err}"))?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.as_ref().is_ok_and(|status| status.success()) {
        setns(former, CloneFlags::CLONE_NEWNET)?;
        return Err(format!("ip link set lo up: {up:?}").into());
    }
    for (setting, value) in [
        ("ipv4/tcp_congestion_control", congestion_control),
        ("ipv4/ip_local_port_range", "1024 65535"),
        ("ipv4/tcp_max_syn_backlog", "8192"),
        ("core/somaxconn", "8192"),
    ] {
        fs::write(format!("/proc/sys/net/{setting}"), value)
            .map_err(|err| format!("{setting}: {err}"))?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn move_to_own(_: &str) -> Fallible<()> {
    Err("network namespaces are Linux's".into())
}

pub(crate) fn congestion_control() -> String {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    setting.map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
