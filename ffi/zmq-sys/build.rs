//! Link flags of the system's libzmq, from pkg-config.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(error) = pkg_config::Config::new().atleast_version("4.3.1").probe("libzmq") {
        eprintln!("{error}");
        eprintln!(
            "libzmq 4.3.1 or newer is needed: `apt-get install libzmq3-dev` or `dnf install zeromq-devel`"
        );
        std::process::exit(1);
    }
}
