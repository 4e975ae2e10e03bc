//! `millstream keys create` beside what a person has written.

use crate::support::program::{Folder, MILLSTREAM, Ran, run};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn create(id: &str, file: &str) -> Ran {
    let env = [("MILLSTREAM_GATEWAY__SECRET", SECRET), ("MILLSTREAM_GATEWAY__KEYS", file)];
    run(MILLSTREAM, &["keys", "create", id], &env)
}

/// Guards against a key beside one of the same ID in another hand, with which no gateway starts again.
#[test]
fn a_key_is_not_added_to_a_file_that_a_gateway_would_then_refuse() {
    let folder = Folder::new();
    let hash = "A".repeat(43);
    for id in ["id = 'web'", "id=\"web\"", "id = \"web\" # mine", "\"id\" = \"w\\u0065b\""] {
        // The last line has no end.
        let there =
            format!("[[keys]]\n{id}\ntenant = \"t\"\nrights = [\"read\"]\nhash = \"{hash}\"");
        let file = folder.write("keys.toml", &there);
        let ran = create("web", &file);
        assert_eq!(ran.code, Some(2), "{id}: {ran:?}");
        assert!(ran.err.contains("key `web` stands there twice"), "{id}: {ran:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), there, "{id}");
        let ran = create("other", &file);
        assert_eq!((ran.code, ran.out.starts_with("ms_other_")), (Some(0), true), "{id}: {ran:?}");
        assert_eq!(create("other", &file).code, Some(2), "what was added is read");
    }
    let file = folder.write("keys.toml", "[[keys]]\nid = ");
    let ran = create("web", &file);
    assert!(ran.code == Some(2) && ran.err.contains("correct the file first"), "{ran:?}");
}

/// Guards against keys that another user of the machine may add to, of which nobody is told.
#[cfg(unix)]
#[test]
fn a_file_of_keys_that_others_may_use_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let file = folder.path().join("new.toml").display().to_string();
    let ran = create("first", &file);
    assert!(ran.code == Some(0) && !ran.err.contains("other users"), "{ran:?}");
    for (id, mode, words) in [("a", 0o644, "read it"), ("b", 0o622, "write it")] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let ran = create(id, &file);
        assert!(ran.err.contains(&format!("other users may {words}; chmod 600")), "{ran:?}");
    }
}
