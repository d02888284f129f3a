//! Who may drain and resume workers, and who may look.

mod common;

use common::{Controller, Worker};
use muster_controller::Config;
use muster_shared::secret::Secret;
use serde_json::{Value, json};

/// A controller that knows one worker, with a fleet token and an admin key where they are wanted.
async fn fleet(token: Option<&str>, admin_key: Option<&str>) -> (Controller, Worker) {
    let secret = |key: &str| Secret::new(key);
    let config = Config { token: token.map(secret), admin_key: admin_key.map(secret), ..Config::default() };
    let (controller, worker) = (Controller::start_with(config).await, Worker::start().await);
    worker.says(worker.id().as_str(), 1);
    controller.client.register(&worker.registration(1)).await.expect("it is taken");
    (controller, worker)
}

/// Posts with a key and more headers; gives the status and the answer.
async fn post(
    controller: &Controller,
    path: &str,
    key: Option<&str>,
    headers: &[(&str, &str)],
    body: &Value,
) -> (u16, Value) {
    let mut request = reqwest::Client::new().post(format!("{}{path}", controller.address)).json(body);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("the controller answers");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn get(controller: &Controller, path: &str, key: Option<&str>) -> u16 {
    let request = reqwest::Client::new().get(format!("{}{path}", controller.address));
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    request.send().await.expect("the controller answers").status().as_u16()
}

#[tokio::test]
async fn operators_need_the_admin_key_where_there_is_one() {
    let (controller, worker) = fleet(Some("fleet"), Some("admin")).await;
    let (operator, itself) = (json!({ "id": worker.id() }), json!({ "id": worker.id(), "incarnation": 1 }));
    for path in ["/drain", "/resume", "/deregister"] {
        for (key, words) in
            [(None, "fleet token"), (Some("fleet"), "not the controller's admin key"), (Some("x"), "wrong")]
        {
            let (status, problem) = post(&controller, path, key, &[], &operator).await;
            let message = problem["message"].as_str().expect("words");
            assert_eq!((status, message.contains(words)), (401, true), "{path} {key:?} {problem}");
        }
    }
    for path in ["/drain", "/resume", "/drain"] {
        assert_eq!(post(&controller, path, Some("admin"), &[], &operator).await.0, 200, "{path}");
    }
    assert_eq!(post(&controller, "/drain", Some("fleet"), &[], &itself).await.0, 200);
    let (status, problem) = post(&controller, "/resume", Some("admin"), &[], &operator).await;
    assert_eq!((status, &problem["kind"]), (409, &json!("stale")), "{problem}");
}

#[tokio::test]
async fn whoever_has_the_token_or_the_key_may_look() {
    let (controller, _worker) = fleet(Some("fleet"), Some("admin")).await;
    for path in ["/fleet", "/topology", "/events"] {
        for (key, status) in [(None, 401), (Some("x"), 401), (Some("fleet"), 200), (Some("admin"), 200)] {
            assert_eq!(get(&controller, path, key).await, status, "{path} {key:?}");
        }
    }
    let (status, _) = post(&controller, "/dispatch", Some("admin"), &[], &json!({})).await;
    assert_eq!(status, 401, "an operator is no service of the fleet");
}

#[tokio::test]
async fn without_an_admin_key_the_token_is_enough_and_without_either_nothing_is_needed() {
    let (controller, worker) = fleet(Some("fleet"), None).await;
    let operator = json!({ "id": worker.id() });
    assert_eq!(post(&controller, "/drain", Some("fleet"), &[], &operator).await.0, 200);
    assert_eq!(post(&controller, "/resume", None, &[], &operator).await.0, 401);
    let (controller, worker) = fleet(None, Some("admin")).await;
    let operator = json!({ "id": worker.id() });
    let (status, problem) = post(&controller, "/drain", None, &[], &operator).await;
    assert!(status == 401 && problem["message"].as_str().expect("words").contains("admin key"), "{problem}");
    assert_eq!(get(&controller, "/topology", None).await, 200);
    let (controller, worker) = fleet(None, None).await;
    assert_eq!(post(&controller, "/drain", None, &[], &json!({ "id": worker.id() })).await.0, 200);
}

#[tokio::test]
async fn no_page_of_somebody_else_changes_anything() {
    let (controller, worker) = fleet(None, None).await;
    let operator = json!({ "id": worker.id() });
    for headers in [[("origin", "http://evil.example")], [("sec-fetch-site", "cross-site")]] {
        for path in ["/drain", "/resume", "/deregister", "/register", "/heartbeat", "/dispatch", "/refresh_all_workers"]
        {
            let (status, problem) = post(&controller, path, None, &headers, &operator).await;
            assert_eq!((status, &problem["kind"]), (403, &json!("forbidden")), "{path} {headers:?}");
        }
    }
    let (status, problem) = controller.post("/drain", operator.clone()).await; // without a content type
    assert_eq!((status, &problem["kind"]), (415, &json!("unsupported_coding")), "{problem}");
    let own = [("origin", controller.address.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(post(&controller, "/drain", None, &own, &operator).await.0, 200);
    for body in [json!({}), json!({ "id": 7 }), json!([]), json!({ "id": "w", "incarnation": -1 })] {
        let (status, problem) = post(&controller, "/resume", None, &[], &body).await;
        assert_eq!((status, &problem["kind"]), (400, &json!("invalid")), "{body} {problem}");
    }
}
