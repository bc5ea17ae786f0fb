fn main() { println!("chronik-server"); }
