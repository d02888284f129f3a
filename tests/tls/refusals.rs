//! Who is refused, and what both sides say about it.

use std::net::SocketAddr;

use muster_shared::client::{ClientError, Timeouts, fleet_client};
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::problem::chain;
use muster_shared::tls::Tls;

use super::authority::{Authority, HERE};
use super::common::{PATIENCE, Process, eventually, run};

fn start(arguments: &[&str], flags: &[String]) -> Process {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Process::start(&[arguments, &flags].concat())
}

fn controller(flags: &[String]) -> Process {
    start(&["controller", "--port", "0"], flags)
}

/// What `muster status` says, with the controller's port left out.
fn status(address: &str, flags: &[String]) -> String {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (status, text, errors) = run(&[&["status", "--controller-address", address], &flags[..]].concat());
    assert!(!status.success(), "{text}");
    let port = address.rsplit(':').next().expect("a port");
    errors.trim_end().replace(port, "PORT")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_hears_what_is_wrong_and_what_to_do() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    ["service", "client"].iter().for_each(|name| drop(ours.make(name, &HERE)));
    other.make("client", &HERE);
    ours.make("named", &["controller.example"]);
    ours.make_expired("old");
    let ca = |authority: &Authority| vec!["--tls-ca".to_owned(), authority.text("ca.pem")];
    let shown = |name: &str, of: &Authority| {
        let files = [of.text(&format!("{name}.pem")), of.text(&format!("{name}.key"))];
        [ca(&ours), vec!["--tls-cert".to_owned(), files[0].clone(), "--tls-key".to_owned(), files[1].clone()]].concat()
    };
    let locked = controller(&ours.flags("service"));
    let named = controller(&ours.open_flags("named"));
    let old = controller(&ours.open_flags("old"));
    let plain = controller(&[]);

    let secured = plain.address.replace("http://", "https://");
    let unsecured = locked.address.replace("https://", "http://");
    ours.make_expired("client-old");
    for (address, flags, right) in [
        (
            &locked.address,
            ca(&ours),
            "muster: cannot speak with https://127.0.0.1:PORT: it wants a certificate of those who call; show one with \
             --tls-cert and --tls-key: received fatal alert: CertificateRequired",
        ),
        (
            &locked.address,
            shown("client", &other),
            "muster: cannot speak with https://127.0.0.1:PORT: the certificate that was shown (--tls-cert) is not signed \
             by an authority that is trusted there (--tls-client-ca): received fatal alert: UnknownCA",
        ),
        (
            &locked.address,
            shown("client-old", &ours),
            "muster: cannot speak with https://127.0.0.1:PORT: the certificate that was shown (--tls-cert) has expired; \
             renew it: received fatal alert: CertificateExpired",
        ),
        (
            &locked.address,
            ca(&other),
            "muster: cannot speak with https://127.0.0.1:PORT: no authority that is trusted here has signed the \
             certificate there; name the one that has with --tls-ca: invalid peer certificate: UnknownIssuer",
        ),
        (
            &named.address,
            ca(&ours),
            "muster: cannot speak with https://127.0.0.1:PORT: the certificate there is for other names; call it by one \
             of them, or make a certificate for this one (subjectAltName, for an IP address, too): invalid peer \
             certificate: certificate not valid for name \"127.0.0.1\"; certificate is only valid for \
             DnsName(\"controller.example\")",
        ),
        (
            &secured,
            ca(&ours),
            "muster: cannot speak with https://127.0.0.1:PORT: it does not speak TLS there; write http://, or give that \
             service a certificate (--tls-cert): received corrupt message of type InvalidContentType",
        ),
        (
            &unsecured,
            ca(&ours),
            "muster: http://127.0.0.1:PORT is no muster controller; it answered 400: this port speaks https; write \
             https:// in the address, instead of http:// (--controller-address)",
        ),
    ] {
        assert_eq!(status(address, &flags), right);
    }
    let expired = status(&old.address, &ca(&ours));
    let begins = "muster: cannot speak with https://127.0.0.1:PORT: the certificate there has expired; renew it: invalid \
                  peer certificate: certificate expired: verification time";
    assert!(expired.starts_with(begins), "{expired}");
    let warned = async || old.errors().contains("this service's certificate (--tls-cert) has expired");
    eventually("the service says so itself", warned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_answers_nobody_without_a_certificate_of_the_fleet() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    ["service", "client"].iter().for_each(|name| drop(ours.make(name, &HERE)));
    other.make("client", &HERE);
    let worker = start(
        &["worker", "--port", "0", "--grpc-port", "0", "--no-register", "--model", "fake"],
        &ours.flags("service"),
    );
    let grpc = worker.grpc_address().await;
    let timeouts = Timeouts { connect: PATIENCE, read: PATIENCE };
    let ask = async |tls: &Tls| {
        let answer = fleet_client(tls, timeouts).get(format!("{}/health", worker.address)).send().await;
        answer.map(|answer| answer.status().as_u16()).map_err(|error| chain(&error))
    };
    let ask_grpc = async |tls: &Tls| {
        let client = GrpcWorkerClient::new(GrpcPool::of_fleet(tls, PATIENCE), &grpc, None, PATIENCE);
        client.server_live().await.map_err(|error: ClientError| chain(&error))
    };
    let friend = ours.client(Some((&ours, "client")));
    assert_eq!(ask(&friend).await, Ok(200));
    assert_eq!(ask_grpc(&friend).await, Ok(Some(true)));
    for (stranger, why) in [
        (ours.client(None), "it wants a certificate of those who call"),
        (ours.client(Some((&other, "client"))), "is not signed by an authority that is trusted there"),
    ] {
        for refused in [ask(&stranger).await.map(drop), ask_grpc(&stranger).await.map(drop)] {
            let error = refused.expect_err("it is a stranger");
            assert!(error.contains(why), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_have_no_certificate_are_told_to_show_one() {
    let ours = Authority::new("ours");
    ours.make("service", &HERE);
    let controller = controller(&ours.flags("service"));
    let ca = ["--tls-ca".to_owned(), ours.text("ca.pem")];
    let address = ["--port", "0", "--controller-address", &controller.address];
    let worker = start(&[&["worker", "--model", "fake"], &address[..]].concat(), &ca);
    let gateway = start(&[&["gateway"], &address[..]].concat(), &ca);
    for service in [&worker, &gateway] {
        let told =
            async || service.errors().contains("it wants a certificate of those who call; show one with --tls-cert");
        eventually("it is in the log", told).await;
    }
}

#[test]
fn an_open_interface_wants_a_lock_and_mutual_tls_is_one() {
    let ours = Authority::new("ours");
    ours.make("service", &HERE);
    let flags = ours.open_flags("service");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (status, _, errors) = run(&[&["gateway", "--host", "0.0.0.0", "--port", "0"], &flags[..]].concat());
    let right = "muster: gateway: 0.0.0.0:0 is open to other machines; protect it with --api-key-file or \
                 --tls-client-ca, listen on 127.0.0.1, or say --insecure\n";
    assert_eq!((status.success(), errors.as_str()), (false, right));
    let gateway = start(&["gateway", "--host", "0.0.0.0", "--port", "0"], &ours.flags("service"));
    let address: SocketAddr = gateway.address.trim_start_matches("https://").parse().expect("an address");
    assert!(address.ip().is_unspecified());
}

#[test]
fn a_key_of_another_certificate_ends_a_service_before_it_listens() {
    let ours = Authority::new("ours");
    ["a", "b"].iter().for_each(|name| drop(ours.make(name, &HERE)));
    let (cert, key) = (ours.text("a.pem"), ours.text("b.key"));
    for service in ["controller", "worker", "gateway"] {
        let (status, text, errors) = run(&[service, "--port", "0", "--tls-cert", &cert, "--tls-key", &key]);
        let right = format!(
            "muster: --tls-key: the key in {key} does not belong to the first certificate in {cert} (--tls-cert); give \
             the two that were made together\n"
        );
        assert_eq!((status.success(), text.as_str(), errors), (false, "", right));
    }
}
