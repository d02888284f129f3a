//! What to do about an error of a connection.

use std::error::Error;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// Alerts of one who does not like our certificate.
const REFUSALS: [AlertDescription; 7] = [
    AlertDescription::CertificateRequired,
    AlertDescription::CertificateExpired,
    AlertDescription::UnknownCA,
    AlertDescription::DecryptError,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnsupportedCertificate,
];

/// What to do about the error, where TLS is behind it.
pub fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = find(error).and_then(advice).or_else(|| told(error)) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The error of rustls that this is, or that it wraps: `io::Error` is silent about what is in it.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    find(inner)
}

/// The alert in an error that has kept only the words of rustls' own: those of HTTP/2 do.
fn told(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let text = error.to_string();
    let word = text.split_once("received fatal alert: ")?.1.split(|char: char| !char.is_alphanumeric()).next()?;
    REFUSALS.into_iter().find(|alert| format!("{alert:?}") == word).and_then(refusal)
}

fn advice(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => refusal(*alert),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("it does not speak TLS there; write http://, or give that service a certificate (--tls-cert)")
        }
        _ => None,
    }
}

/// What is wrong with the certificate that was seen.
fn certificate(error: &CertificateError) -> Option<&'static str> {
    Some(match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate there has expired; renew it"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate there is not valid yet; are both clocks right?"
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority that is trusted here has signed the certificate there; name the one that has with --tls-ca"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate there is for other names; call it by one of them, or make a certificate for this one \
             (subjectAltName, for an IP address, too)"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate there is not made for this end of a connection; a service's needs serverAuth and \
             clientAuth (extendedKeyUsage), or neither"
        }
        _ => return None,
    })
}

/// What the other end has against us.
fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateRequired => {
            "it wants a certificate of those who call; show one with --tls-cert and --tls-key"
        }
        AlertDescription::CertificateExpired => "the certificate that was shown (--tls-cert) has expired; renew it",
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "the certificate that was shown (--tls-cert) is not signed by an authority that is trusted there \
             (--tls-client-ca)"
        }
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => {
            "the certificate that was shown (--tls-cert) was not accepted; is it made for clients (extendedKeyUsage \
             clientAuth, or none)?"
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "there is no version and no suite of TLS that both ends speak; muster speaks 1.2 and 1.3"
        }
        _ => return None,
    })
}
