//! An endpoint whose answer comes in one piece: its body in, its body out.

use muster_shared::control::ModelKind;
use muster_shared::problem::Problem;
use serde::Serialize;

use super::ReplyHead;
use crate::observe::Route;
use crate::upstream::call::Call;

/// Bodies of one endpoint.
pub(crate) trait Endpoint: 'static {
    /// Where it is.
    const ROUTE: Route;
    /// What the ids of its answers begin with.
    const PREFIX: &'static str;
    /// What it asks of a worker.
    type Call: Call;
    /// What it must remember for the answer.
    type Form: Send;
    /// The answer.
    type Reply: Serialize;

    /// Reads and checks a body. The call is still without a request id.
    ///
    /// # Errors
    /// An invalid request, by the name of the field.
    fn parse(body: &[u8]) -> Result<(Self::Call, Self::Form), Problem>;

    /// Heeds what the model can be asked for, where that is known: it is one of those that the route is for, unless
    /// other workers may answer.
    ///
    /// # Errors
    /// What a model of that kind cannot do, by the name of the field.
    fn suit(_: &mut Self::Form, _: ModelKind) -> Result<(), Problem> {
        Ok(())
    }

    /// The answer.
    ///
    /// # Errors
    /// What the model turned out not to be able to do.
    fn reply(
        head: ReplyHead,
        call: &Self::Call,
        form: Self::Form,
        answer: <Self::Call as Call>::Answer,
    ) -> Result<Self::Reply, Problem>;
}
