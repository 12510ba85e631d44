//! What must hold for any input whatever, as functions that panic where it does not.
//!
//! They are built for tests and fuzzers alone. `make fuzz` looks for inputs that break them; ordinary tests run them on
//! the inputs that are kept in `fuzz/corpus`, among them all that ever broke one.

mod input;
mod labels;
mod tokens;
mod tunnel;

pub use labels::labels;
pub use tokens::tokens;
pub use tunnel::tunnel;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::{fs, panic, path::Path};

    /// Runs a property on every input that is kept for it.
    fn holds_for_what_is_kept(target: &str, property: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut kept = 0;
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let input = fs::read(&path).expect("an input");
            assert!(panic::catch_unwind(|| property(&input)).is_ok(), "it does not hold for {}", path.display());
            kept += 1;
        }
        assert!(kept > 0, "{} is empty", folder.display());
    }

    #[test]
    fn labels_hold_for_what_is_kept() {
        holds_for_what_is_kept("labels", labels);
    }

    #[test]
    fn tokens_hold_for_what_is_kept() {
        holds_for_what_is_kept("tokens", tokens);
    }

    #[test]
    fn tunnels_hold_for_what_is_kept() {
        holds_for_what_is_kept("tunnel", tunnel);
    }

    proptest! {
        #[test]
        fn labels_hold_for_any_text(input in "[a-zA-Z0-9.:\n-]{0,200}") {
            labels(input.as_bytes());
        }

        #[test]
        fn tokens_hold_for_any_edits(input in vec(any::<u8>(), 0..60)) {
            tokens(&input);
        }

        #[test]
        fn tunnels_hold_for_whatever_happens(input in vec(any::<u8>(), 0..60)) {
            tunnel(&input);
        }
    }
}
