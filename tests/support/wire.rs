//! What passes on a wire: `tcpdump` into a file, and a reader of that file.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::Namespace;
use super::wait::poll;

/// A running packet capture.
#[derive(Debug)]
pub(crate) struct Wire {
    tcpdump: Child,
    file: PathBuf,
}

/// One TCP packet.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The flags byte of the TCP header (RFC 9293 §3.1).
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    /// Whether it opens a connection.
    pub(crate) fn opens(&self) -> bool {
        self.flags & 0x12 == 0x02
    }

    /// Whether either end has this port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.from.port() == port || self.to.port() == port
    }

    /// Whether either end has this address.
    pub(crate) fn has_ip(&self, ip: IpAddr) -> bool {
        self.from.ip() == ip || self.to.ip() == ip
    }

    /// Whether its payload holds `needle`.
    pub(crate) fn contains(&self, needle: &[u8]) -> bool {
        self.payload.windows(needle.len()).any(|w| w == needle)
    }
}

impl Wire {
    /// Listens on an interface of `namespace`; packets from now on are recorded in `file`.
    pub(crate) fn tap(namespace: &Namespace, interface: &str, file: PathBuf) -> Self {
        let args = [
            "netns",
            "exec",
            namespace.name(),
            "tcpdump",
            "-Z",
            "root",
            "-U",
        ];
        let mut tcpdump = Command::new("ip")
            .args(args)
            .args([
                "--immediate-mode",
                "-n",
                "-B",
                "16384",
                "-i",
                interface,
                "-w",
            ])
            .arg(&file)
            .arg("tcp")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("tcpdump cannot be run: {e}"));
        let mut said = BufReader::new(tcpdump.stderr.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let n = said.read_line(&mut line).expect("its words are text");
            assert!(
                n > 0,
                "tcpdump on {interface} does not start; ./scripts/test installs it"
            );
        }
        // What it counts at its end must find a reader.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { tcpdump, file }
    }

    /// Stops listening and gives the TCP packets that passed.
    pub(crate) fn packets(mut self) -> Vec<Packet> {
        self.settle();
        self.stop();
        read(&std::fs::read(&self.file).expect("tcpdump wrote its file"))
    }

    /// Waits until tcpdump has written what it has seen: its file no longer grows.
    fn settle(&self) {
        let mut sizes = [u64::MAX; 4];
        poll(Duration::from_secs(3), || {
            sizes.rotate_left(1);
            sizes[3] = std::fs::metadata(&self.file).map_or(0, |m| m.len());
            (sizes[0] == sizes[3]).then_some(())
        });
    }

    fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.tcpdump.id()).expect("a pid is positive"));
        if matches!(self.tcpdump.try_wait(), Ok(None)) {
            let _ = kill(pid, Signal::SIGINT);
        }
        let _ = self.tcpdump.wait();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads a capture file of Ethernet frames in this machine's byte order.
fn read(file: &[u8]) -> Vec<Packet> {
    let magic = file.first_chunk().map(|b| u32::from_ne_bytes(*b));
    assert_eq!(magic, Some(0xa1b2_c3d4), "this is what tcpdump writes");
    let mut packets = Vec::new();
    let mut rest = &file[24..];
    while let Some((header, tail)) = rest.split_at_checked(16) {
        let captured = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, tail)) = tail.split_at_checked(captured) else {
            break;
        };
        packets.extend(parse(frame));
        rest = tail;
    }
    packets
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let packet = frame.get(14..)?;
    let (from, to, tcp) = match word(frame, 12)? {
        0x0800 => {
            let (header, length) = (usize::from(packet.first()? & 0xf) * 4, word(packet, 2)?);
            let from = Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?);
            let to = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
            let tcp = packet.get(header..usize::from(length).min(packet.len()))?;
            (IpAddr::V4(from), IpAddr::V4(to), tcp)
        }
        0x86dd => {
            let from = Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?);
            let to = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
            let end = 40 + usize::from(word(packet, 4)?);
            let tcp = packet.get(40..end.min(packet.len()))?;
            (IpAddr::V6(from), IpAddr::V6(to), tcp)
        }
        _ => return None,
    };
    Some(Packet {
        from: SocketAddr::new(from, word(tcp, 0)?),
        to: SocketAddr::new(to, word(tcp, 2)?),
        flags: *tcp.get(13)?,
        payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?.to_vec(),
    })
}
