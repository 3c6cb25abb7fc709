//! Certificates from an authority (ACME, RFC 8555), proved by TLS-ALPN-01 (RFC 8737) on our own listener.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use instant_acme::{
    AccountBuilder, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error,
    HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::client::{Answer, Client, ClientSettings, SendFailure};
use super::describe;
use super::resolve;
use super::tls::{self, Resolver, TargetTls, TlsError};

/// For one request to the authority, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How the authority is asked whether it is done: for as long, and ever more rarely. It may check each
/// domain from several places.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));

/// Why there is no certificate, or no account.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// No answer.
    #[error("the authority can't be reached: {0}")]
    Unreachable(SendFailure),
    /// An answer that says no.
    #[error("the authority says no: {0}")]
    Refused(String),
    /// The account is not known, or not valid any more.
    #[error("the account is of no use: {0}")]
    NoAccount(String),
    /// The authority could not convince itself that a domain is ours.
    #[error(
        "the authority's check of {domain} failed (its port 443 has to lead to this relay): {reason}"
    )]
    NotProved {
        /// The domain.
        domain: String,
        /// What the authority says of it.
        reason: String,
    },
    /// It would have to be proved in another way than ours.
    #[error("the authority does not offer tls-alpn-01 for {domain}")]
    NotOffered {
        /// The domain.
        domain: String,
    },
    /// The authority was asked for long enough.
    #[error("the authority was not done in time")]
    TooSlow,
    /// What came is not what the protocol says.
    #[error("what the authority answered can't be used: {0}")]
    Unusable(String),
}

/// An authority, by its directory's address.
#[derive(Debug)]
pub struct Authority {
    directory: String,
    http: Http,
}

/// What an account is known by, its key with it.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct Credentials(instant_acme::AccountCredentials);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// An account at an authority.
pub struct Account {
    inner: instant_acme::Account,
    contact: Vec<String>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("id", &self.inner.id()).finish_non_exhaustive()
    }
}

/// What was ordered.
pub struct Issued {
    /// The certificate and those above it, PEM.
    pub chain: String,
    /// Its key, PEM; made for it.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Authority {
    /// Knows where it is; asks it nothing yet. Its own certificate must be of `roots` (PEM), or of the
    /// system's.
    pub fn new(directory: &str, roots: Option<&[u8]>) -> Result<Self, TlsError> {
        let tls = tls::client_config(TargetTls { ca: roots, identity: None })?;
        let settings = ClientSettings {
            tls: Some(tls),
            server_name: None,
            // Minutes pass between two orders' requests, months between two orders.
            idle_max: 1,
            connect_timeout: REQUEST_TIMEOUT,
            resolver: resolve::Resolver::default(),
        };
        let http = Http { client: Arc::new(Client::new(settings)), asked: Arc::default() };
        Ok(Self { directory: directory.to_owned(), http })
    }

    fn builder(&self) -> AccountBuilder {
        instant_acme::Account::builder_with_http(Box::new(self.http.clone()))
    }

    /// Makes an account, and agrees to the authority's terms.
    pub async fn register(&self, contact: &[String]) -> Result<(Account, Credentials), AcmeError> {
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let made = self.builder().create(&wanted, self.directory.clone(), None).await;
        let (inner, credentials) = made.map_err(understood)?;
        Ok((Account { inner, contact: contact.to_vec() }, Credentials(credentials)))
    }

    /// Goes on with an account that was made before.
    pub async fn account(
        &self,
        credentials: Credentials,
        contact: &[String],
    ) -> Result<Account, AcmeError> {
        let restored = self.builder().from_credentials(credentials.0).await;
        let inner = restored.map_err(|error| match error {
            Error::KeyRejected => AcmeError::NoAccount("its key can't be used".to_owned()),
            other => understood(other),
        })?;
        Ok(Account { inner, contact: contact.to_vec() })
    }

    /// How long it asked to be left alone since this was called last.
    pub fn take_asked(&self) -> Option<Duration> {
        self.http.asked.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Account {
    /// Its address at the authority.
    pub fn id(&self) -> &str {
        self.inner.id()
    }

    /// Tells the authority whom to write to.
    pub async fn update_contact(&self) -> Result<(), AcmeError> {
        let contacts: Vec<&str> = self.contact.iter().map(String::as_str).collect();
        self.inner.update_contacts(&contacts).await.map_err(|error| match &error {
            Error::Api(problem) if is(problem, &["accountDoesNotExist", "unauthorized"]) => {
                AcmeError::NoAccount(error.to_string())
            }
            // What the library says of an account that is there and not valid.
            Error::Str(said) => AcmeError::NoAccount((*said).to_owned()),
            _ => understood(error),
        })
    }

    /// Orders a certificate, proves each domain on the listener of `resolver`, and brings it.
    pub async fn order(
        &self,
        domains: &[String],
        resolver: &Resolver,
    ) -> Result<Issued, AcmeError> {
        let names: Vec<_> = domains.iter().map(|name| Identifier::Dns(name.clone())).collect();
        let mut order = match self.inner.new_order(&NewOrder::new(&names)).await {
            Ok(order) => order,
            Err(error) => return Err(self.no_order(error).await),
        };
        tracing::info!(order = order.url(), "A certificate is ordered.");
        let presented = prove(&mut order, resolver).await?;
        let polled = order.poll_ready(&PATIENCE).await;
        drop(presented);
        match polled {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(why_not(&mut order, None).await),
            Err(error @ Error::Api(_)) => return Err(why_not(&mut order, Some(error)).await),
            Err(error) => return Err(understood(error)),
        }
        tracing::info!("The authority has checked every domain; it makes the certificate.");
        let key = Zeroizing::new(order.finalize().await.map_err(understood)?);
        let chain = order.poll_certificate(&PATIENCE).await.map_err(understood)?;
        Ok(Issued { chain, key })
    }

    /// An account that was deactivated is refused as what is not allowed for other reasons is: it is
    /// asked after, so that no account is made in vain.
    async fn no_order(&self, error: Error) -> AcmeError {
        match &error {
            Error::Api(problem) if is(problem, &["accountDoesNotExist"]) => {
                AcmeError::NoAccount(error.to_string())
            }
            Error::Api(problem) if is(problem, &["unauthorized"]) => {
                match self.update_contact().await {
                    Err(gone @ AcmeError::NoAccount(_)) => gone,
                    _ => understood(error),
                }
            }
            _ => understood(error),
        }
    }
}

/// Takes challenges back when the order is through with them, whatever became of it.
struct Presented<'a> {
    resolver: &'a Resolver,
    domains: Vec<String>,
}

impl Drop for Presented<'_> {
    fn drop(&mut self) {
        for domain in &self.domains {
            self.resolver.end_challenge(domain);
        }
    }
}

/// Shows what the authority wants to see for each domain, and asks it to look.
async fn prove<'a>(order: &mut Order, resolver: &'a Resolver) -> Result<Presented<'a>, AcmeError> {
    let mut presented = Presented { resolver, domains: Vec::new() };
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(understood)?;
        let domain = authorization.identifier().to_string();
        if authorization.status == AuthorizationStatus::Valid {
            tracing::info!(domain, "The authority has checked this domain before.");
            continue;
        }
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            return Err(AcmeError::NotOffered { domain });
        };
        let digest = challenge.key_authorization().digest();
        let certificate = challenge_certificate(&domain, digest.as_ref())
            .map_err(|error| AcmeError::Unusable(error.to_string()))?;
        resolver.answer_challenge(&domain, Arc::new(certificate));
        presented.domains.push(domain.clone());
        challenge.set_ready().await.map_err(understood)?;
        tracing::info!(domain, "The authority checks this domain: it connects to its port 443.");
    }
    Ok(presented)
}

/// What the authority says of the domain that it could not check.
async fn why_not(order: &mut Order, error: Option<Error>) -> AcmeError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let problem =
            authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = problem {
            let domain = authorization.identifier().to_string();
            return AcmeError::NotProved { domain, reason: said(problem) };
        }
    }
    error.map_or_else(|| AcmeError::Refused("the order is not valid".to_owned()), understood)
}

/// Signed by itself: who looks at it wants to see the digest of what only the account's owner knows.
fn challenge_certificate(
    domain: &str,
    digest: &[u8],
) -> Result<CertifiedKey, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::new(vec![domain.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

fn is(problem: &Problem, names: &[&str]) -> bool {
    let name = problem.r#type.as_deref().and_then(|name| name.rsplit(':').next());
    name.is_some_and(|name| names.contains(&name))
}

/// A problem on one line, with what it has to say of single domains.
fn said(problem: &Problem) -> String {
    let mut text = problem.detail.clone().unwrap_or_else(|| "it does not say why".to_owned());
    for part in &problem.subproblems {
        text.push_str("; ");
        text.push_str(&part.to_string());
    }
    if let Some(name) = &problem.r#type {
        text.push_str(" (");
        text.push_str(name);
        text.push(')');
    }
    text
}

fn understood(error: Error) -> AcmeError {
    match error {
        Error::Api(problem) => AcmeError::Refused(said(&problem)),
        Error::Timeout(_) => AcmeError::TooSlow,
        Error::Other(error) => match error.downcast::<SendFailure>() {
            Ok(failure) => AcmeError::Unreachable(*failure),
            Err(other) => AcmeError::Unusable(describe(&*other)),
        },
        other => AcmeError::Unusable(describe(&other)),
    }
}

/// The relay's own client, as the library wants one.
#[derive(Debug, Clone)]
struct Http {
    client: Arc<Client>,
    asked: Arc<Mutex<Option<Duration>>>,
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let http = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let request = Request::from_parts(head, Full::new(body));
            let answer = http.client.fetch(request, Instant::now() + REQUEST_TIMEOUT).await;
            let answer = answer.map_err(|failure| Error::Other(Box::new(failure)))?;
            http.listen_to(&answer);
            let mut response = Response::new(Full::new(answer.excerpt));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            Ok(BytesResponse::from(response))
        })
    }
}

impl Http {
    /// Who says no may say for how long.
    fn listen_to(&self, answer: &Answer) {
        if answer.status.is_success() {
            return;
        }
        let seconds = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        if let Some(seconds) = seconds.and_then(|text| text.trim().parse().ok()) {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            *asked = Some(Duration::from_secs(seconds));
        }
    }
}
