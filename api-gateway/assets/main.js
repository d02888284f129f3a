// The playground: which models there are decides what can be tried.

import { Chat } from "/assets/chat.js";
import { byId, el, setText } from "/assets/dom.js";
import { Embeddings } from "/assets/embeddings.js";
import { currentKey, forgetKey, onKey, reasonOf, request } from "/assets/key.js";
import { Tabs } from "/assets/tabs.js";

/** What each tab is for; a model of whose kind nothing is known may be tried everywhere. */
const KINDS = { chat: ["generate"], embeddings: ["embed", "sparse_embed"] };
const AGAIN = 5000;

const tabs = new Tabs(Object.keys(KINDS));
const chat = new Chat();
const embeddings = new Embeddings();
let waiting = null;

async function load() {
  clearTimeout(waiting);
  try {
    const response = await request("/v1/models");
    if (!response.ok) {
      throw new Error(await reasonOf(response));
    }
    const { data } = await response.json();
    show(data);
    notice(data.length === 0 ? "No worker serves a model yet." : null);
    if (data.length === 0) {
      waiting = setTimeout(load, AGAIN);
    }
  } catch (error) {
    notice(`The models cannot be listed: ${error.message}`);
  }
}

function show(models) {
  const fitting = (kinds) => models.filter((model) => !model.kind || kinds.includes(model.kind));
  fill("chat-model", fitting(KINDS.chat));
  fill("embed-model", fitting(KINDS.embeddings));
  tabs.enable(Object.keys(KINDS).filter((tab) => fitting(KINDS[tab]).length > 0));
  chat.enable(fitting(KINDS.chat).length > 0);
  embeddings.enable(fitting(KINDS.embeddings).length > 0);
}

function fill(id, models) {
  const chosen = byId(id).value;
  byId(id).replaceChildren(...models.map((model) => el("option", { value: model.id, text: model.id })));
  if (models.some((model) => model.id === chosen)) {
    byId(id).value = chosen;
  }
}

function notice(text) {
  byId("notice").hidden = text === null;
  setText(byId("notice-text"), text ?? "");
}

const showKey = () => {
  byId("forget-key").hidden = !currentKey();
};
byId("notice-button").addEventListener("click", load);
byId("forget-key").addEventListener("click", forgetKey);
onKey(showKey);
showKey();
show([]);
load();
