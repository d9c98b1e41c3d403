//! Prints the C header.

fn main() {
    print!("{}", c_header::header());
}
