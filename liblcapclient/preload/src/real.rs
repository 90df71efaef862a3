//! The real liblustreapi: the one that the program is linked with, or else the system's.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::sync::OnceLock;

use lcap_ffi::process::secure_env;

type Start = unsafe extern "C" fn(*mut *mut c_void, c_int, *const c_char, c_longlong) -> c_int;
type StartUser = unsafe extern "C" fn(
    *mut *mut c_void,
    c_int,
    *const c_char,
    *const c_char,
    u64,
    c_longlong,
) -> c_int;
type CtRegister =
    unsafe extern "C" fn(*mut *mut c_void, *const c_char, c_int, *mut c_int, c_int) -> c_int;
type Begin =
    unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_void, c_int, c_int, bool) -> c_int;
type OfHandle = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The real functions, as far as there are.
#[derive(Default)]
pub(crate) struct Functions {
    pub(crate) start: Option<Start>,
    pub(crate) start_user: Option<StartUser>,
    pub(crate) fini: Option<unsafe extern "C" fn(*mut *mut c_void) -> c_int>,
    pub(crate) recv: Option<unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int>,
    pub(crate) in_buf: Option<OfHandle>,
    pub(crate) get_fd: Option<OfHandle>,
    pub(crate) set_xflags: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    pub(crate) clear:
        Option<unsafe extern "C" fn(*const c_char, *const c_char, c_longlong) -> c_int>,
    pub(crate) search_fsname: Option<unsafe extern "C" fn(*const c_char, *mut c_char) -> c_int>,
    pub(crate) ct_register: Option<CtRegister>,
    pub(crate) ct_unregister: Option<unsafe extern "C" fn(*mut *mut c_void) -> c_int>,
    pub(crate) ct_get_fd: Option<OfHandle>,
    pub(crate) ct_recv:
        Option<unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut c_int) -> c_int>,
    pub(crate) begin: Option<Begin>,
    pub(crate) end:
        Option<unsafe extern "C" fn(*mut *mut c_void, *const c_void, c_int, c_int) -> c_int>,
}

/// Looks them up at the first call that needs one.
pub(crate) fn functions() -> &'static Functions {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    FUNCTIONS.get_or_init(|| {
        for name in [c"llapi_changelog_start", c"llapi_hsm_copytool_register"] {
            // SAFETY: asks for the next definition of a name after this library's own.
            let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
            if !next.is_null() {
                return Functions::from(libc::RTLD_NEXT);
            }
        }
        open_library().map_or_else(Functions::default, Functions::from)
    })
}

/// For programs that are not linked with it. Never closed.
fn open_library() -> Option<*mut c_void> {
    let named = secure_env("LCAP_LIBLUSTREAPI").and_then(|name| std::ffi::CString::new(name).ok());
    let usual = [c"liblustreapi.so.1", c"liblustreapi.so"];
    let names = match &named {
        Some(name) => vec![name.as_c_str()],
        None => usual.to_vec(),
    };
    // SAFETY: loading runs the library's initialisers. It is Lustre's own, or what the
    // administrator put in its place.
    let open =
        |name: &CStr| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    names.into_iter().map(open).find(|library| !library.is_null())
}

impl Functions {
    /// All that `library` has.
    fn from(library: *mut c_void) -> Self {
        let find = |name: &CStr| {
            // SAFETY: an open library, or RTLD_NEXT, and a C string.
            let address = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!address.is_null()).then_some(address)
        };
        // SAFETY (of each): a function of that name in liblustreapi has that type, which has not
        // changed since 2.10 (2.0 for most).
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: see above.
                find($name).map(|address| unsafe { std::mem::transmute(address) })
            };
        }
        Self {
            start: function!(c"llapi_changelog_start"),
            start_user: function!(c"llapi_changelog_start_user"),
            fini: function!(c"llapi_changelog_fini"),
            recv: function!(c"llapi_changelog_recv"),
            in_buf: function!(c"llapi_changelog_in_buf"),
            get_fd: function!(c"llapi_changelog_get_fd"),
            set_xflags: function!(c"llapi_changelog_set_xflags"),
            clear: function!(c"llapi_changelog_clear"),
            search_fsname: function!(c"llapi_search_fsname"),
            ct_register: function!(c"llapi_hsm_copytool_register"),
            ct_unregister: function!(c"llapi_hsm_copytool_unregister"),
            ct_get_fd: function!(c"llapi_hsm_copytool_get_fd"),
            ct_recv: function!(c"llapi_hsm_copytool_recv"),
            begin: function!(c"llapi_hsm_action_begin"),
            end: function!(c"llapi_hsm_action_end"),
        }
    }
}
