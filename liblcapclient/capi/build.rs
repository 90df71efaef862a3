//! The name by which programs find the shared library. `make install` links the installed one from
//! the static library, with versioned symbols (`packaging/install-client.sh`): rustc gives the
//! linker a version script of its own, and there can only be one.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblcapclient.so.1");
}
