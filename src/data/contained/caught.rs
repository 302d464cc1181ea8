//! Panics of other people's libraries as errors.
use std::{
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use anyhow::{Result, anyhow};

thread_local! {
    /// Inside of [`caught`]: what the panic said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// What `work` gives; a panic in it is an error that says where it was, and nothing is printed. `work` leaves nothing half-done behind: what it
/// changes is not used after an error.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let kept = SAID.with_borrow_mut(|said| match said {
                Some(text) => {
                    *text = info.to_string().replace('\n', " ");
                    true
                }
                None => false,
            });
            if !kept {
                usual(info);
            }
        }));
    });
    let before = SAID.replace(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    let said = SAID.replace(before).unwrap_or_default();
    result.unwrap_or_else(|_| Err(anyhow!("the library that reads it failed: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_where() {
        let error = caught(|| -> Result<()> { panic!("no such luck") }).unwrap_err().to_string();
        assert!(error.contains("no such luck") && error.contains("caught.rs"), "{error}");
        assert_eq!(caught(|| Ok(3)).unwrap(), 3);
        let inner = caught(|| Ok(caught(|| -> Result<()> { panic!("inner") }).is_err()));
        assert!(inner.unwrap());
    }
}
