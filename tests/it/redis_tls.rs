//! Redis over TLS: whom to trust is asked of the system or of a file, and the host's name is checked.

use std::process::Command;

use crate::support::{
    port,
    program::{Folder, PRODUCER, Ran, run},
    redis::Server,
};

/// An authority's certificate, and a server that has one of it for `localhost` alone.
struct Sealed {
    folder: Folder,
    port: u16,
    _server: Server,
}

impl Sealed {
    async fn start() -> Self {
        let folder = Folder::new();
        let key =
            ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        for (name, more) in [
            ("ca", &[][..]),
            (
                "server",
                &[
                    "-CA",
                    "ca.pem",
                    "-CAkey",
                    "ca.key",
                    "-addext",
                    "subjectAltName=DNS:localhost",
                    "-addext",
                    "basicConstraints=critical,CA:FALSE",
                ],
            ),
        ] {
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-x509", "-subj", &format!("/CN={name}")]).args(key);
            openssl.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
            let output = openssl.args(more).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let (port, file) =
            (port::free(), |name: &str| folder.path().join(name).display().to_string());
        let (number, ca, cert, key) =
            (port.to_string(), file("ca.pem"), file("server.pem"), file("server.key"));
        let server = Server::with(&[
            "--tls-port",
            &number,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "no",
        ])
        .await;
        Self { folder, port, _server: server }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Enqueues a job there.
    fn enqueue(&self, scheme: &str, host: &str, env: &[(&str, &str)]) -> Ran {
        let url = format!("{scheme}://{host}:{}", self.port);
        let line = ["--model", "m", "--user", "hi"];
        run(PRODUCER, &line, &[&[("REDIS_URL", url.as_str())], env].concat())
    }
}

/// Guards against an authority of one's own that could not be named, and against a certificate of another
/// host that is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_must_be_of_a_trusted_authority_and_name_the_host() {
    let sealed = Sealed::start().await;
    let (ca, wrong) = (sealed.file("ca.pem"), sealed.file("ca.key"));
    let ca_file = ("MILLSTREAM_REDIS__CA_FILE", ca.as_str());
    for env in [ca_file, ("SSL_CERT_FILE", &ca)] {
        let ran = sealed.enqueue("rediss", "localhost", &[env]);
        assert_eq!(ran.code, Some(0), "{env:?}: {ran:?}");
        let ran = sealed.enqueue("rediss", "127.0.0.1", &[env]);
        assert!(ran.code == Some(16) && ran.err.contains("not valid for name"), "{env:?}: {ran:?}");
    }
    let ran = sealed.enqueue("rediss", "localhost", &[]);
    assert!(ran.code == Some(16) && ran.err.contains("UnknownIssuer"), "{ran:?}");
    assert!(ran.err.contains("redis.ca_file or SSL_CERT_FILE"), "{ran:?}");
    // The file stands instead of the system's authorities, whatever those are.
    let system = sealed.folder.write("none.pem", "");
    let ran = sealed.enqueue("rediss", "localhost", &[ca_file, ("SSL_CERT_FILE", &system)]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for file in [wrong.as_str(), "/nonexistent/ca.pem"] {
        let env = [("MILLSTREAM_REDIS__CA_FILE", file)];
        let ran = sealed.enqueue("rediss", "localhost", &env);
        assert!(ran.code == Some(3) && ran.err.contains("redis.ca_file"), "{ran:?}");
    }
    let ran = sealed.enqueue("redis", "localhost", &[ca_file]);
    assert!(ran.code == Some(3) && ran.err.contains("rediss://"), "{ran:?}");
}

/// One side speaks TLS and the other does not: that is said, and not that nobody is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_speaks_only_tls_says_so() {
    let sealed = Sealed::start().await;
    let ran = sealed.enqueue("redis", "localhost", &[]);
    assert!(ran.code == Some(16) && ran.err.contains("speaks only TLS"), "{ran:?}");
}
