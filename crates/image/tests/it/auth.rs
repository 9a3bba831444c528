//! Who gets to see credentials, and what the statuses of a registry become.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nacre_image::PullError;
use nacre_image::registry::RegistryError;

use crate::support::{Bench, Reply, Request, Server, TestImage, chain};

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// Serves the image to whoever sends this Authorization; challenges others.
fn guarded(
    image: &TestImage,
    authorization: &'static str,
    challenge: impl Fn() -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let well = image.serve();
    move |request| match request.header("Authorization") {
        Some(value) if value == authorization => well(request),
        _ => challenge(),
    }
}

fn token_server(reply: Reply) -> Server {
    Server::start(move |_| reply.clone())
}

fn token() -> Reply {
    Reply::ok(br#"{"token": "t0ken", "expires_in": 60}"#.to_vec())
}

fn authorizations(server: &Server) -> Vec<String> {
    server
        .requests()
        .iter()
        .filter_map(|request| request.header("Authorization").map(str::to_owned))
        .collect()
}

#[test]
fn token_is_fetched_with_stored_credentials_and_used_for_all_requests() {
    let tokens = token_server(token());
    let realm = format!("http://{}/token", tokens.host());
    let server = Server::start(guarded(&TestImage::small(), "Bearer t0ken", move || Reply::bearer(&realm)));
    let bench = Bench::new();
    bench.log_in(&server.host());

    bench.pull(&server.name()).unwrap();

    let asked = tokens.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("Authorization"), Some(BASIC));
    assert_eq!(asked[0].query, "scope=repository%3Ademo%2Fapp%3Apull&service=test");
    assert!(authorizations(&server).iter().all(|value| value == "Bearer t0ken"));
}

#[test]
fn token_is_fetched_as_nobody_without_credentials() {
    let tokens = token_server(token());
    let realm = format!("http://{}/token", tokens.host());
    let server = Server::start(guarded(&TestImage::small(), "Bearer t0ken", move || Reply::bearer(&realm)));
    Bench::new().pull(&server.name()).unwrap();
    assert!(authorizations(&tokens).is_empty());
}

#[test]
fn identity_token_is_exchanged_by_post() {
    let tokens = token_server(Reply::ok(br#"{"access_token": "t0ken"}"#.to_vec()));
    let realm = format!("http://{}/token", tokens.host());
    let server = Server::start(guarded(&TestImage::small(), "Bearer t0ken", move || Reply::bearer(&realm)));
    let bench = Bench::new();
    let config = format!(r#"{{"auths": {{"{}": {{"identitytoken": "refresh-me"}}}}}}"#, server.host());
    std::fs::write(bench.dir.path().join("auth.json"), config).unwrap();

    bench.pull(&server.name()).unwrap();

    let asked = &tokens.requests()[0];
    assert_eq!(asked.method, "POST");
    assert!(asked.body.contains("refresh_token=refresh-me"), "{}", asked.body);
    assert!(!asked.query.contains("refresh-me"));
}

#[test]
fn token_that_expires_during_the_pull_is_renewed() {
    let tokens = token_server(token());
    let realm = format!("http://{}/token", tokens.host());
    let well = TestImage::small().serve();
    let blobs = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let fresh = !request.is_blob() || blobs.fetch_add(1, Ordering::SeqCst) != 0;
        match request.header("Authorization") {
            Some("Bearer t0ken") if fresh => well(request),
            _ => Reply::bearer(&realm),
        }
    });
    Bench::new().pull(&server.name()).unwrap();
    assert_eq!(tokens.requests().len(), 2);
}

#[test]
fn basic_authentication_is_answered_with_stored_credentials() {
    let challenge = || Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\"");
    let server = Server::start(guarded(&TestImage::small(), BASIC, challenge));
    let bench = Bench::new();
    bench.log_in(&server.host());
    bench.pull(&server.name()).unwrap();
}

#[test]
fn refused_login_says_what_to_do() {
    let challenge = || Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\"");
    let server = Server::start(guarded(&TestImage::small(), "nobody", challenge));
    let bench = Bench::new();
    let expected = format!("run `docker login {}`", server.host());

    let without = chain(&bench.pull(&server.name()).unwrap_err());
    assert!(without.contains(&expected), "{without}");
    assert_eq!(server.requests().len(), 1);

    bench.log_in(&server.host());
    let with = chain(&bench.pull(&server.name()).unwrap_err());
    assert!(with.contains(&expected), "{with}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn i08_token_server_on_another_host_sees_no_credentials() {
    let tokens = token_server(token());
    let realm = format!("http://localhost:{}/token", tokens.port());
    let server = Server::start(guarded(&TestImage::small(), "Bearer t0ken", move || Reply::bearer(&realm)));
    let bench = Bench::new();
    bench.log_in(&server.host());

    bench.pull(&server.name()).unwrap();

    assert_eq!(tokens.requests().len(), 1);
    assert!(authorizations(&tokens).is_empty());
    assert!(!authorizations(&server).contains(&BASIC.to_owned()));
}

#[test]
fn i08_withheld_credentials_are_explained_when_they_were_needed() {
    let tokens = token_server(Reply::status(401));
    let realm = format!("http://localhost:{}/token", tokens.port());
    let server = Server::start(move |_| Reply::bearer(&realm));
    let bench = Bench::new();
    bench.log_in(&server.host());
    let error = chain(&bench.pull(&server.name()).unwrap_err());
    assert!(error.contains("credentials are withheld from localhost"), "{error}");
    assert!(authorizations(&tokens).is_empty());
}

#[test]
fn i08_token_server_over_plain_http_elsewhere_is_not_asked() {
    let server = Server::start(|_| Reply::bearer("http://registry.invalid/token"));
    let bench = Bench::new();
    bench.log_in(&server.host());
    let error = bench.pull(&server.name()).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::Realm { .. })), "{error:?}");
}

#[test]
fn i08_redirect_to_another_host_carries_no_authorization() {
    let image = TestImage::small();
    let storage = Server::start(image.serve());
    let target = format!("http://localhost:{}", storage.port());
    let challenge = || Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\"");
    let well = guarded(&image, BASIC, challenge);
    let server = Server::start(move |request| match well(request) {
        _ if request.is_blob() && request.header("Authorization").is_some() => {
            Reply::redirect(&format!("{target}{}", request.path))
        }
        reply => reply,
    });
    let bench = Bench::new();
    bench.log_in(&server.host());

    bench.pull(&server.name()).unwrap();

    assert_eq!(storage.requests().len(), 2);
    assert!(authorizations(&storage).is_empty());
}

#[test]
fn i08_challenge_after_a_redirect_is_not_answered() {
    let storage = Server::start(|_| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    let target = format!("http://localhost:{}/x", storage.port());
    let server = Server::start(move |_| Reply::redirect(&target));
    let bench = Bench::new();
    bench.log_in(&server.host());
    bench.log_in(&format!("localhost:{}", storage.port()));
    let error = bench.pull(&server.name()).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::Status { status: 401, .. })), "{error:?}");
    assert!(authorizations(&storage).is_empty());
}

#[test]
fn i08_redirect_from_https_to_http_is_refused() {
    let plain = Server::start(TestImage::small().serve());
    let target = format!("http://{}/v2/demo/app/manifests/latest", plain.host());
    let (config, certificate) = tls();
    let server = Server::start_tls(config, move |_| Reply::redirect(&target));
    let bench = Bench::new();
    trust(&bench, &server, &certificate);
    let error = bench.pull(&server.name()).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::Redirect { .. })), "{error:?}");
    assert!(plain.requests().is_empty());
}

#[test]
fn i08_redirect_to_plain_http_elsewhere_is_refused() {
    let server = Server::start(|_| Reply::redirect("http://registry.invalid/x"));
    let error = Bench::new().pull(&server.name()).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::Redirect { .. })), "{error:?}");
}

#[test]
fn registry_with_a_certificate_of_its_own_ca_is_reached() {
    let (config, certificate) = tls();
    let server = Server::start_tls(config, TestImage::small().serve());
    let bench = Bench::new();
    trust(&bench, &server, &certificate);
    bench.pull(&server.name()).unwrap();
}

#[test]
fn untrusted_certificate_says_where_to_put_its_ca() {
    let (config, _) = tls();
    let server = Server::start_tls(config, TestImage::small().serve());
    let bench = Bench::new();
    std::fs::create_dir_all(bench.options.registry.certs_dir.join(server.host())).unwrap();
    let error = chain(&bench.pull(&server.name()).unwrap_err());
    assert!(error.contains(&format!("certs.d/{}/ca.crt", server.host())), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn missing_image_is_reported_with_its_name() {
    let server = Server::start(|_| Reply::status(404));
    let error = chain(&Bench::new().pull(&server.name()).unwrap_err());
    assert!(error.starts_with(&format!("no such image: {}", server.name())), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn registry_that_is_down_is_reported() {
    let name = Server::start(|_| Reply::status(500)).name();
    let error = chain(&Bench::new().pull(&name).unwrap_err());
    assert!(error.starts_with("cannot connect to registry 127.0.0.1:"), "{error}");
}

#[test]
fn server_errors_are_tried_again_and_then_reported() {
    let well = TestImage::small().serve();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Reply::status(502),
        _ => well(request),
    });
    Bench::new().pull(&server.name()).unwrap();

    let server = Server::start(|_| Reply::status(500));
    let error = chain(&Bench::new().pull(&server.name()).unwrap_err());
    assert!(error.contains("answered with status 500"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn rate_limit_is_waited_for_when_the_wait_is_short() {
    let well = TestImage::small().serve();
    let count = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(429).header("Retry-After", "0"),
        _ => well(request),
    });
    Bench::new().pull(&server.name()).unwrap();
}

#[test]
fn rate_limit_with_a_long_wait_is_reported_at_once() {
    let server = Server::start(|_| Reply::status(429).header("Retry-After", "3600"));
    let error = chain(&Bench::new().pull(&server.name()).unwrap_err());
    assert!(error.contains("limits the rate of requests and asks to wait 3600 s"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

fn tls() -> (rustls::ServerConfig, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (config, made.cert.pem())
}

fn trust(bench: &Bench, server: &Server, certificate: &str) {
    let dir = bench.options.registry.certs_dir.join(server.host());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), certificate).unwrap();
}
