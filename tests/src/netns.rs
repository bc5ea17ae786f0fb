//! Hosts that exist for one test: network namespaces, a router between them, and cuts of single directions.
//!
//! Each host is a namespace with one address; all that they say to each other goes through a router, a namespace as
//! well, which silently drops what goes from one host to another while that direction is cut. So no packet filter is
//! needed: a cut is a routing rule. Needs root and `ip`; [`missing`] says where they are not.
//!
//! - I1: nothing has a name in the machine's own network, and nothing outlives the test: a namespace is there as long as
//!   a thread, a process or an open file is in it.
//! - I2: a thread enters a namespace for good; everything that it starts afterwards is there, too.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::scratch::wait_for;

const DEADLINE: Duration = Duration::from_secs(10);
/// Where a thread sees the namespace that it is in.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Why there can be no namespaces here; `None` where there can.
#[must_use]
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    let tried =
        Namespace::new().map(|tried| tried.run(|| ip(&cut_command("add", (Host(1), Host(2))))));
    match tried {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some("no `ip` from iproute2 that can drop packets by a rule"),
        Err(_) => Some("no `unshare` that may make network namespaces"),
    }
}

/// A namespace without any interface that is up.
#[derive(Debug)]
pub struct Namespace {
    /// Keeps it, and is the way in.
    handle: File,
}

impl Namespace {
    /// Makes one.
    pub fn new() -> Result<Namespace> {
        let own = std::fs::read_link(OWN_NAMESPACE)?;
        // It lives until its input ends, which is long enough to take hold of its namespace.
        let mut child = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("running unshare")?;
        let path = format!("/proc/{}/ns/net", child.id());
        let handle = wait_for("a namespace is made", DEADLINE, || {
            let is_over = !matches!(child.try_wait(), Ok(None));
            let is_made = std::fs::read_link(&path).is_ok_and(|namespace| namespace != own);
            (is_made || is_over).then(|| if is_made { File::open(&path).ok() } else { None })
        });
        drop(child.stdin.take());
        child.wait()?;
        let handle = handle?.context("unshare --net ended without a namespace")?;
        Ok(Namespace { handle })
    }

    /// Takes the calling thread into it, for good.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering a network namespace")
    }

    /// Runs something on a thread inside. Processes that it starts are inside, too.
    ///
    /// # Panics
    /// If a thread cannot enter, or `f` panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let entered = self.enter();
            assert!(entered.is_ok(), "{entered:?}");
            f()
        };
        let ran = std::thread::scope(|scope| scope.spawn(inside).join());
        ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A name under which any thread of this process, and its children, can open it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }
}

/// A host: its number in the network is its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host(pub u8);

impl Host {
    /// Its address.
    #[must_use]
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.0, 2)
    }

    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.0, 1)
    }
}

/// Hosts of one test that reach each other through one router.
#[derive(Debug)]
pub struct Network {
    router: Namespace,
    hosts: Vec<Arc<Namespace>>,
    cuts: Mutex<Vec<(Host, Host)>>,
}

impl Network {
    /// So many hosts that all reach each other.
    pub fn of(hosts: u8) -> Result<Network> {
        let router = Namespace::new()?;
        router.run(|| -> Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            // Where one direction is cut, the other one must still look plausible to the router.
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
            std::fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", "0")?;
            Ok(())
        })?;
        let join = |host| join(&router, host);
        let hosts = (0..hosts).map(Host).map(join).collect::<Result<Vec<_>>>()?;
        Ok(Network { router, hosts, cuts: Mutex::default() })
    }

    /// The namespace of a host.
    #[must_use]
    pub fn namespace(&self, host: Host) -> Arc<Namespace> {
        Arc::clone(&self.hosts[usize::from(host.0)])
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: Host, to: Host) -> Result<()> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!cuts.contains(&(from, to)), "{from:?} to {to:?} is cut already");
        self.router.run(|| ip(&cut_command("add", (from, to))))?;
        cuts.push((from, to));
        Ok(())
    }

    /// Cuts both directions.
    pub fn cut_both(&self, one: Host, other: Host) -> Result<()> {
        self.cut(one, other)?;
        self.cut(other, one)
    }

    /// Everybody hears everybody again.
    pub fn heal(&self) -> Result<()> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        for cut in cuts.drain(..) {
            self.router.run(|| ip(&cut_command("del", cut)))?;
        }
        Ok(())
    }
}

fn cut_command(verb: &str, (from, to): (Host, Host)) -> String {
    format!("rule {verb} blackhole from {} to {}\n", from.ip(), to.ip())
}

/// A host with a cable to the router.
fn join(router: &Namespace, host: Host) -> Result<Arc<Namespace>> {
    let namespace = Namespace::new()?;
    let (n, ip_addr, gateway) = (host.0, host.ip(), host.gateway());
    router.run(|| {
        ip(&format!(
            "link add v{n} type veth peer name eth0 netns {}\naddr add {gateway}/24 dev v{n}\n\
             link set v{n} up\n",
            namespace.path()
        ))
    })?;
    namespace.run(|| {
        ip(&format!(
            "link set lo up\naddr add {ip_addr}/24 dev eth0\nlink set eth0 up\n\
             route add default via {gateway}\n"
        ))
    })?;
    Ok(Arc::new(namespace))
}

/// Runs lines of `ip` in the namespace of the calling thread.
fn ip(lines: &str) -> Result<()> {
    let program = ["/usr/sbin/ip", "/sbin/ip"].into_iter().find(|path| Path::new(path).exists());
    let mut child = Command::new(program.unwrap_or("ip"))
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let ended = child.wait_with_output()?;
    if !ended.status.success() {
        bail!("ip: {}\n{lines}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::scratch::say_skipped;

    const SHORT: Duration = Duration::from_millis(300);

    fn hears(to: &mut TcpStream, from: &mut TcpStream, patience: Duration) -> bool {
        from.write_all(b"x").unwrap();
        to.set_read_timeout(Some(patience)).unwrap();
        match to.read(&mut [0]) {
            Ok(count) => count == 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn given_two_hosts_when_one_direction_is_cut_then_the_other_still_works_until_all_is_healed() {
        if let Some(why) = missing() {
            say_skipped(why);
            return;
        }
        let network = Network::of(2).unwrap();
        let (one, other) = (Host(0), Host(1));
        let listener = network.namespace(other).run(|| TcpListener::bind((other.ip(), 5000)));
        let to = (other.ip(), 5000);
        let mut near = network.namespace(one).run(|| TcpStream::connect(to)).unwrap();
        let (mut far, from) = listener.unwrap().accept().unwrap();
        assert_eq!(from.ip(), one.ip());
        assert!(hears(&mut far, &mut near, DEADLINE) && hears(&mut near, &mut far, DEADLINE));
        network.cut(one, other).unwrap();
        assert!(!hears(&mut far, &mut near, SHORT), "heard through a cut");
        assert!(hears(&mut near, &mut far, DEADLINE), "the other direction is not cut");
        network.heal().unwrap();
        assert!(hears(&mut far, &mut near, DEADLINE), "not healed");
    }
}
