//! What the aggregated groups say of themselves: discovery and OpenAPI. All of it is made once at the start
//! from constants, so it is served whatever happens to tunnels, authorizer or parent: while a group's
//! discovery fails, no namespace of the parent can finish deleting (`namespaced_resources_deleter.go`).

use std::collections::HashMap;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::Value;

use crate::body::ResponseBody;
use crate::refusal::Refusal;
use crate::request_info::Document;

mod discovery;
mod openapi;

const JSON: &str = "application/json";
/// The dialects of `/apis`, as the aggregator compares them (`ContentTypeIsGVK`).
const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// One document, ready to be sent.
#[derive(Debug)]
struct Ready {
    content_type: &'static str,
    body: Bytes,
    /// With its quotes.
    etag: String,
}

impl Ready {
    fn new(content_type: &'static str, value: &Value) -> Self {
        let body = Bytes::from(value.to_string());
        Self { content_type, etag: format!("\"{}\"", hash(&body)), body }
    }
}

fn hash(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// All documents.
#[derive(Debug)]
pub struct Documents {
    plain: HashMap<Document, Ready>,
    groups_v2: Ready,
    groups_v2beta1: Ready,
}

impl Default for Documents {
    fn default() -> Self {
        Self::new()
    }
}

impl Documents {
    /// Makes them.
    pub fn new() -> Self {
        let proxies = openapi::proxies_v3();
        let access = openapi::access_v3();
        let root =
            openapi::root_v3(&hash(proxies.to_string().as_bytes()), &hash(access.to_string().as_bytes()));
        let plain = [
            (Document::Version, discovery::version()),
            (Document::Groups, discovery::group_list()),
            (Document::ProxiesGroup, discovery::proxies_group()),
            (Document::AccessGroup, discovery::access_group()),
            (Document::ProxiesResources, discovery::proxies_resources()),
            (Document::AccessResources, discovery::access_resources()),
            (Document::OpenApiV2, openapi::v2()),
            (Document::OpenApiV3, root),
            (Document::ProxiesOpenApi, proxies),
            (Document::AccessOpenApi, access),
        ];
        Self {
            plain: plain.into_iter().map(|(document, value)| (document, Ready::new(JSON, &value))).collect(),
            groups_v2: Ready::new(AGGREGATED_V2, &discovery::aggregated("v2")),
            groups_v2beta1: Ready::new(AGGREGATED_V2BETA1, &discovery::aggregated("v2beta1")),
        }
    }

    /// Answers a request for one of them.
    ///
    /// # Errors
    /// The caller accepts none of the forms that there are.
    pub fn answer(
        &self,
        document: Document,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let ready = self.choose(document, headers)?;
        let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        let known = known.flat_map(|line| line.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
        let same = known.into_iter().any(|tag| tag == "*" || tag == ready.etag);

        let mut response =
            Response::new(if same { ResponseBody::empty() } else { ResponseBody::own(ready.body.clone()) });
        if same {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let out = response.headers_mut();
        out.insert(VARY, HeaderValue::from_static("Accept"));
        if let Ok(etag) = HeaderValue::try_from(ready.etag.as_str()) {
            out.insert(ETAG, etag);
        }
        if !same {
            out.insert(CONTENT_TYPE, HeaderValue::from_static(ready.content_type));
        }
        // The wrong hash is answered as well, not with upstream's 301, which the parent would make a 502.
        let hash = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("hash=")));
        if hash.is_some_and(|hash| hash == ready.etag.trim_matches('"')) {
            out.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
        }
        Ok(response)
    }

    fn choose(&self, document: Document, headers: &HeaderMap) -> Result<&Ready, Refusal> {
        let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let mut accepted =
            lines.flat_map(|line| line.split(',')).map(str::trim).filter(|one| !one.is_empty()).peekable();
        let anything = accepted.peek().is_none();
        let plain =
            self.plain.get(&document).ok_or_else(|| Refusal::NotFound("no such document".to_owned()))?;
        if anything {
            return Ok(plain);
        }
        for one in accepted {
            let mut parts = one.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameter = |name: &str| {
                one.split(';').skip(1).find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
            };
            match (media, parameter("as")) {
                (JSON, Some("APIGroupDiscoveryList")) if document == Document::Groups => {
                    match (parameter("g"), parameter("v")) {
                        (Some("apidiscovery.k8s.io"), Some("v2")) => return Ok(&self.groups_v2),
                        (Some("apidiscovery.k8s.io"), Some("v2beta1")) => return Ok(&self.groups_v2beta1),
                        _ => {}
                    }
                }
                (JSON | "application/*" | "*/*", None) => return Ok(plain),
                // Old clients that prefer protobuf read what the answer says that it is.
                (media, None) if media.contains("protobuf") => return Ok(plain),
                _ => {}
            }
        }
        Err(Refusal::NotAcceptable(JSON))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(document: Document, lines: &[(&'static str, &str)]) -> Result<Response<ResponseBody>, u16> {
        let headers: HeaderMap = lines
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        Documents::new().answer(document, &headers, None).map_err(|refusal| refusal.to_status().code.as_u16())
    }

    fn content_type(response: &Response<ResponseBody>) -> &str {
        response.headers()[CONTENT_TYPE].to_str().unwrap()
    }

    fn body(response: Response<ResponseBody>) -> Value {
        let ResponseBody::Own(Some(bytes)) = response.into_body() else { panic!("no body") };
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn the_three_dialects_of_apis_are_spoken_as_asked() {
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        for (accept, expected, version) in [
            (v2.to_owned(), v2, "apidiscovery.k8s.io/v2"),
            (beta.to_owned(), beta, "apidiscovery.k8s.io/v2beta1"),
            (format!("{v2},{beta},application/json"), v2, "apidiscovery.k8s.io/v2"),
            (
                "application/json; g=apidiscovery.k8s.io; v=v2; as=APIGroupDiscoveryList".to_owned(),
                v2,
                "apidiscovery.k8s.io/v2",
            ),
            ("application/json".to_owned(), JSON, "v1"),
            ("application/json, */*".to_owned(), JSON, "v1"),
        ] {
            let response = ask(Document::Groups, &[("accept", &accept)]).unwrap();
            assert_eq!(content_type(&response), expected);
            assert_eq!(response.headers()[VARY], "Accept");
            assert_eq!(body(response)["apiVersion"], version);
        }
        assert_eq!(body(ask(Document::Groups, &[]).unwrap())["kind"], "APIGroupList");
        assert_eq!(ask(Document::Groups, &[("accept", "application/xml")]).unwrap_err(), 406);
        let v3 = "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList";
        assert_eq!(ask(Document::Groups, &[("accept", v3)]).unwrap_err(), 406);
    }

    #[test]
    fn a_document_that_is_known_is_not_sent_again() {
        let first = ask(Document::OpenApiV2, &[]).unwrap();
        let etag = first.headers()[ETAG].to_str().unwrap().to_owned();
        assert!(etag.starts_with('"') && etag.ends_with('"'));
        let again = ask(Document::OpenApiV2, &[("if-none-match", &etag)]).unwrap();
        assert_eq!(again.status(), 304);
        assert_eq!(ask(Document::OpenApiV2, &[("if-none-match", "\"x\"")]).unwrap().status(), 200);
    }

    #[test]
    fn protobuf_first_gets_json() {
        let response = ask(
            Document::ProxiesResources,
            &[("accept", "application/vnd.kubernetes.protobuf,application/json")],
        )
        .unwrap();
        assert_eq!(content_type(&response), JSON);
        assert_eq!(body(response)["kind"], "APIResourceList");
    }

    #[test]
    fn openapi_v3_leads_to_documents_that_exist() {
        let documents = Documents::new();
        let root = body(documents.answer(Document::OpenApiV3, &HeaderMap::new(), None).unwrap());
        for (path, document) in [
            ("apis/proxies.clusternet.io/v1alpha1", Document::ProxiesOpenApi),
            ("apis/access.towline.io/v1alpha1", Document::AccessOpenApi),
        ] {
            let url = root["paths"][path]["serverRelativeURL"].as_str().unwrap();
            let (found, query) = url.split_once('?').unwrap();
            assert_eq!(found, format!("/openapi/v3/{path}"));
            let right = documents.answer(document, &HeaderMap::new(), Some(query)).unwrap();
            assert!(right.headers()[CACHE_CONTROL].to_str().unwrap().contains("immutable"));
            let wrong = documents.answer(document, &HeaderMap::new(), Some("hash=0")).unwrap();
            assert_eq!((wrong.status().as_u16(), wrong.headers().get(CACHE_CONTROL)), (200, None));
        }
    }
}
