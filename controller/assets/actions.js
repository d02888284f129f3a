// Draining a worker and letting it go on, after a question.

import { byId, setText } from "/assets/dom.js";
import { NoKey, PATIENCE, reasonOf, request } from "/assets/key.js";
import { actionName } from "/assets/table.js";
import { counted } from "/assets/words.js";

const SHOWN = 8000;
let hiding = null;

/** Says something to everybody, those who cannot see the page too. */
export function say(text, isBad = false) {
  const said = byId("said");
  said.textContent = text;
  said.dataset.bad = isBad;
  said.dataset.shown = true;
  clearTimeout(hiding);
  hiding = setTimeout(() => {
    delete said.dataset.shown;
  }, SHOWN);
}

function question(action, worker) {
  if (action === "resume") {
    return "It gets requests again at once.";
  }
  const now = worker.tickets === 0 ? "It has no request now" : `It finishes ${counted(worker.tickets, "request")}`;
  return `${now} and gets no new ones until it is resumed.`;
}

/** Whether the one at the page agrees. */
function confirmed(action, worker) {
  const dialog = byId("confirm-dialog");
  setText(byId("confirm-title"), `${actionName(action)} ${worker.id}?`);
  setText(byId("confirm-text"), question(action, worker));
  setText(byId("confirm-button"), actionName(action));
  return new Promise((resolve) => {
    const controller = new AbortController();
    const answer = (isYes) => {
      controller.abort();
      dialog.close();
      resolve(isYes);
    };
    const listen = (event, listener) => dialog.addEventListener(event, listener, { signal: controller.signal });
    listen("submit", (event) => {
      event.preventDefault();
      answer(true);
    });
    listen("click", (event) => event.target.closest("[data-cancel]") && answer(false));
    listen("close", () => dialog.open || answer(false)); // else it is the event of an earlier closing
    dialog.showModal();
    byId("confirm-button").focus();
  });
}

function ask(action, worker) {
  const body = JSON.stringify({ id: worker.id });
  const headers = { "content-type": "application/json" };
  const dialog = { title: `${actionName(action)} ${worker.id}: a key is wanted`, label: "Admin key" };
  return request(`/${action}`, { method: "POST", headers, body, patience: PATIENCE, dialog });
}

/** Asks, and then does it. */
export async function act(action, worker) {
  if (!(await confirmed(action, worker))) {
    return;
  }
  const verb = actionName(action).toLowerCase();
  try {
    const response = await ask(action, worker);
    if (!response.ok) {
      say(`Could not ${verb} ${worker.id}: ${await reasonOf(response)}`, true);
      return;
    }
    say(action === "drain" ? `${worker.id} drains: it gets no new requests.` : `${worker.id} is resumed: it gets requests again.`);
  } catch (error) {
    const reason = error instanceof NoKey ? `no key was given (${error.message})` : error.message;
    say(`Could not ${verb} ${worker.id}: ${reason}`, true);
  }
}
