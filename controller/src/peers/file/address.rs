//! The forms of an address: `IP:PORT`, `HOST:PORT`, `[IPv6]:PORT`, `http[s]://HOST:PORT[/BASE]`.

use std::net::{IpAddr, SocketAddr};

use reqwest::Url;

/// What an address may be.
pub(super) const FORMS: &str = "IP:PORT, HOST:PORT, [IPv6]:PORT, http://HOST:PORT or https://HOST:PORT";
const PORT: &str = "a port from 1 to 65535";

/// What is wrong with an address, and what is expected.
pub(super) type Wrong = (String, String);

/// Reads an address, and makes it the base URL that means the same.
pub(super) fn read(text: &str) -> Result<String, Wrong> {
    if text.chars().any(|char| char.is_control() || char.is_whitespace()) {
        return Err((format!("the address {text:?} has spaces or control characters"), FORMS.to_owned()));
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err((format!("the address {text:?} begins with {scheme}://"), FORMS.to_owned()));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if rest.contains(['?', '#', '@', '\\']) {
        return Err((format!("the address {text:?} is more than host, port and path"), FORMS.to_owned()));
    }
    let host = check_port(text, authority, scheme != "http" || text.contains("://"))?;
    if host.is_empty() {
        return Err((format!("the address {text:?} has no host"), FORMS.to_owned()));
    }
    let url = format!("{scheme}://{rest}");
    normal(&url).ok_or_else(|| (format!("the address {text:?} has a host that cannot be"), FORMS.to_owned()))
}

/// Checks the port; a URL may do without. Gives the host.
fn check_port<'a>(text: &str, authority: &'a str, is_url: bool) -> Result<&'a str, Wrong> {
    let none = || (format!("the address {text:?} has no port"), FORMS.to_owned());
    let (host, port) = match authority.rfind(']') {
        Some(end) => (&authority[..=end], authority[end + 1..].strip_prefix(':')),
        None => match authority.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err((
                    format!("the address {text:?} has more than one colon"),
                    "IPv6 in brackets, as in [::1]:21002".to_owned(),
                ));
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    match port {
        None if is_url => Ok(host),
        None | Some("") => Err(none()),
        Some(port) if !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err((format!("port {port:?}"), PORT.to_owned()))
        }
        Some(port) => match port.parse::<u16>() {
            Ok(1..) => Ok(host),
            _ => Err((format!("port {}", super::tree::shortened(port)), PORT.to_owned())),
        },
    }
}

/// A base URL in the form in which two that mean the same place are the same; `None`: it is none.
pub(crate) fn normal(address: &str) -> Option<String> {
    let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())?;
    Some(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether that is where the controller itself listens, as far as can be known without asking.
pub(super) fn is_own(address: &str, own: SocketAddr) -> bool {
    let Ok(url) = Url::parse(address) else { return false };
    if url.port_or_known_default() != Some(own.port()) {
        return false;
    }
    let host = url.host_str().unwrap_or_default();
    let ip = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical(),
        // Whatever a resolver makes of other names is known only when it is asked.
        Err(_) if host == "localhost" || host.ends_with(".localhost") => {
            return own.ip().is_loopback() || own.ip().is_unspecified();
        }
        Err(_) => return false,
    };
    let here = own.ip().to_canonical();
    // One who connects to 0.0.0.0 reaches this machine.
    ip == here
        || (here.is_unspecified() || ip.is_unspecified())
            && (ip.is_loopback() || ip.is_unspecified() || here.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_becomes_the_base_url_that_means_the_same() {
        for (given, right) in [
            ("10.0.0.7:21002", "http://10.0.0.7:21002"),
            ("host:1", "http://host:1"),
            ("LOCALHOST:1", "http://localhost:1"),
            ("http://localhost:1/", "http://localhost:1"),
            ("[::1]:65535", "http://[::1]:65535"),
            ("[0:0::1]:2", "http://[::1]:2"),
            ("http://w.example:80/base/", "http://w.example/base"),
            ("HTTP://W:80", "http://w"),
            ("https://w.example:443/base/", "https://w.example/base"),
            ("HTTPS://W:21002", "https://w:21002"),
        ] {
            assert_eq!(read(given).as_deref(), Ok(right), "{given}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_in_words() {
        for (given, part) in [
            ("", "no port"),
            ("10.0.0.7", "no port"),
            ("host:", "no port"),
            (":1", "no host"),
            ("host:0", "port 0"),
            ("host:70000", "port 70000"),
            ("host:-1", "port \"-1\""),
            ("host:http", "port \"http\""),
            ("host:99999999999999999999", "port 99999999999999999999"),
            ("::1:80", "more than one colon"),
            ("fe80::1", "more than one colon"),
            ("ftp://host:1", "begins with ftp://"),
            ("http://", "no host"),
            ("http://host:70000", "port 70000"),
            ("user:key@host:1", "more than host"),
            ("host:1?x", "more than host"),
            ("a b:1", "spaces"),
            ("a\u{7}:1", "control"),
            ("256.1.1.1:80", "cannot be"),
            ("[::g]:80", "cannot be"),
        ] {
            let (what, _) = read(given).expect_err(given);
            assert!(what.contains(part), "{given}: {what}");
        }
    }

    #[test]
    fn the_controllers_own_address_is_known_however_it_is_written() {
        fn own(own: &str) -> impl Fn(&str) -> bool {
            let own = own.parse().expect("an address");
            move |peer| is_own(&read(peer).expect("an address"), own)
        }
        let (loopback, any) = (own("127.0.0.1:21001"), own("0.0.0.0:21001"));
        for here in [
            "127.0.0.1:21001",
            "localhost:21001",
            "http://localhost:21001/",
            "0.0.0.0:21001",
            "[::ffff:127.0.0.1]:21001",
        ] {
            assert!(loopback(here) && any(here), "{here}");
        }
        assert!(own("[::]:21001")("127.0.0.1:21001") && own("[::]:21001")("[::1]:21001"));
        for elsewhere in ["127.0.0.1:21002", "10.0.0.7:21001", "example.com:21001"] {
            assert!(!loopback(elsewhere) && !any(elsewhere), "{elsewhere}");
        }
        assert!(!own("10.0.0.1:21001")("127.0.0.1:21001"));
    }
}
