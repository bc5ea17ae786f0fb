//! A link that can get stuck.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Stands between two nodes, forwards, and stops forwarding when it is told to, without closing anything.
pub struct Proxy {
    pub address: SocketAddr,
    stuck: Arc<Mutex<bool>>,
}

impl Proxy {
    pub fn start(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stuck = Arc::new(Mutex::new(false));
        let is_stuck = Arc::clone(&stuck);
        // It ends with the test's process, as do the threads of connections that nobody closes.
        std::thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                let Ok(there) = TcpStream::connect(to) else { continue };
                let pairs =
                    [(here.try_clone().unwrap(), there.try_clone().unwrap()), (there, here)];
                for (from, to) in pairs {
                    let is_stuck = Arc::clone(&is_stuck);
                    std::thread::spawn(move || forward(from, to, &is_stuck));
                }
            }
        });
        Proxy { address, stuck }
    }

    /// What gets it stuck.
    pub fn switch(&self) -> Arc<Mutex<bool>> {
        Arc::clone(&self.stuck)
    }

    /// From here on nothing comes through.
    pub fn get_stuck(&self) {
        *self.stuck.lock().unwrap() = true;
    }

    /// New connections work again; those that were stuck stay silent.
    pub fn recover(&self) {
        *self.stuck.lock().unwrap() = false;
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_stuck: &Mutex<bool>) {
    let mut buffer = [0; 4096];
    let mut is_silent = false;
    while let Ok(received @ 1..) = from.read(&mut buffer) {
        is_silent |= *is_stuck.lock().unwrap();
        if !is_silent && to.write_all(&buffer[..received]).is_err() {
            break;
        }
    }
    if !is_silent {
        to.shutdown(std::net::Shutdown::Both).ok();
    }
}
