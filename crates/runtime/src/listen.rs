//! A port to listen on, or why there is none: which flag sets it, what to do, and who has it, as far as the kernel tells
//! (proc_net(5): a process of another user, or one that forbids it, stays unknown).

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Processes that are looked at for the one that has a port; a node has a few thousand.
const MAX_PROCESSES: usize = 10_000;
/// State of a socket that listens, in `/proc/net/tcp` (`TCP_LISTEN` in the kernel's `include/net/tcp_states.h`).
const LISTENING: &str = "0A";

/// Connections that wait in the kernel until they are accepted, at most; it takes less if `net.core.somaxconn` (4,096
/// since Linux 5.4) says so. All agents of a hub that was restarted come within a second, and one for whom there is no
/// room tries again only after a second, then after three.
const BACKLOG: u32 = 4_096;

/// Nobody can listen there.
#[derive(Debug, thiserror::Error)]
#[error("--{flag} {address}: {why}")]
pub struct CannotListen {
    flag: &'static str,
    address: SocketAddr,
    why: String,
    source: io::Error,
}

/// Listens on the address that `--flag` gives.
///
/// # Errors
/// The port is taken, the address is not this machine's, or nobody may.
pub fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, CannotListen> {
    listen(address).map_err(|source| {
        let holder = (source.kind() == ErrorKind::AddrInUse).then(|| holder(address.port())).flatten();
        CannotListen { flag, address, why: why(&source, address.port(), holder.as_deref()), source }
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted process takes its port back while old connections end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn why(error: &io::Error, port: u16, holder: Option<&str>) -> String {
    if error.kind() == ErrorKind::AddrInUse {
        let by = holder.map_or_else(|| "another process".to_owned(), |holder| format!("process {holder}"));
        return format!("port {port} is taken by {by}; stop that, or choose another port");
    }
    if error.kind() == ErrorKind::PermissionDenied {
        return format!("this process may not listen on port {port}; choose one from 1024 on");
    }
    if error.kind() == ErrorKind::AddrNotAvailable {
        return "no interface of this machine or pod has this address; 0.0.0.0 or [::] is all of them"
            .to_owned();
    }
    error.to_string()
}

/// `1234 (name)` of the process that listens on the port, if it can be seen.
fn holder(port: u16) -> Option<String> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| listening(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = std::fs::read_dir("/proc").ok()?.flatten().take(MAX_PROCESSES);
    let mut numbered = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let holder = numbered.find(|process| {
        let open = std::fs::read_dir(process.path().join("fd"));
        open.into_iter().flatten().flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|to| sockets.iter().any(|socket| to == **socket))
        })
    })?;
    let name = std::fs::read_to_string(holder.path().join("comm")).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    Some(format!("{} ({name})", holder.file_name().to_string_lossy()))
}

/// Inodes of the sockets that listen on the port, out of `/proc/net/tcp` or `tcp6`.
fn listening(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?.rsplit_once(':')?.1;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        (u16::from_str_radix(local, 16) == Ok(port) && state == LISTENING).then(|| inode.parse().ok())?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_listen_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:20FB 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 20 4 30 10 -1
   2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 100 0 0 10 0
   3: broken";
        assert_eq!(listening(table, 0x20fb), [4711]);
        assert_eq!(listening(table, 80), [99]);
        assert_eq!(listening(table, 443), Vec::<u64>::new());
    }

    #[tokio::test]
    async fn a_taken_port_is_told_with_its_flag_and_who_has_it() {
        let first = bind("listen", SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = first.local_addr().unwrap();
        let told = bind("gateway-listen", address).unwrap_err().to_string();
        // A process that forbids core dumps hides its files from all but root, from itself too.
        let seen = std::fs::read_dir("/proc/self/fd").is_ok();
        let by =
            if seen { format!("process {} (", std::process::id()) } else { "another process".to_owned() };
        let begin = format!("--gateway-listen {address}: port {} is taken by {by}", address.port());
        assert!(told.starts_with(&begin), "{told}");
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_told() {
        let told = bind("listen", SocketAddr::from(([192, 0, 2, 1], 0))).unwrap_err().to_string();
        assert!(told.contains("no interface"), "{told}");
    }
}
