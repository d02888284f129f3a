// The playground: which models there are decides what can be tried.

import { Chat } from "/assets/chat.js";
import { byId, el, setText } from "/assets/dom.js";
import { Embeddings } from "/assets/embeddings.js";
import { NoKey, PATIENCE, currentKey, forgetKey, onKey, reasonOf, request } from "/assets/key.js";
import { Tabs } from "/assets/tabs.js";

/** What each tab is for; a model of whose kind nothing is known may be tried everywhere. */
const KINDS = { chat: ["generate"], embeddings: ["embed", "sparse_embed"] };
const AGAIN = 5000;

const tabs = new Tabs(Object.keys(KINDS));
const chat = new Chat();
const embeddings = new Embeddings();
const fold = matchMedia("(max-width: 820px)");
let waiting = null;
let isLoading = false;
/** Whether somebody has refused to give a key: nobody is asked again unless he wants to be. */
let isRefused = false;

async function load() {
  if (isLoading) {
    return;
  }
  isLoading = true;
  clearTimeout(waiting);
  try {
    const models = await list();
    show(models);
    notice(lack(models));
    isRefused = false;
  } catch (error) {
    isRefused = error instanceof NoKey;
    notice(`The models cannot be listed: ${error.message}`);
  }
  isLoading = false;
  if (!byId("notice").hidden && !isRefused) {
    waiting = setTimeout(loadIfSeen, AGAIN);
  }
}

/** Models come and go while the page is open. */
const loadIfSeen = () => document.hidden || isRefused || load();

async function list() {
  const response = await request("/v1/models", { patience: PATIENCE });
  if (!response.ok) {
    throw new Error(await reasonOf(response));
  }
  return (await response.json()).data;
}

const isFor = (model, kinds) => !model.kind || kinds.includes(model.kind);

/** Why nothing can be tried; `null` where something can. */
function lack(models) {
  if (models.length === 0) {
    return "No worker serves a model yet.";
  }
  const isUsable = models.some((model) => isFor(model, Object.values(KINDS).flat()));
  return isUsable ? null : `None of these models chats or embeds: ${models.map((model) => model.id).join(", ")}.`;
}

function show(models) {
  const fitting = (kinds) => models.filter((model) => isFor(model, kinds));
  fill("chat-model", fitting(KINDS.chat));
  fill("embed-model", fitting(KINDS.embeddings));
  tabs.enable(Object.keys(KINDS).filter((tab) => fitting(KINDS[tab]).length > 0));
  chat.enable(fitting(KINDS.chat).length > 0);
  embeddings.enable(fitting(KINDS.embeddings).length > 0);
}

function fill(id, models) {
  const chosen = byId(id).value;
  const before = [...byId(id).options].map((option) => option.value);
  if (before.join("\n") === models.map((model) => model.id).join("\n")) {
    return; // somebody may be choosing
  }
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
document.addEventListener("visibilitychange", loadIfSeen);
onKey(showKey);
const showSettings = () => {
  byId("chat-more").open = !fold.matches;
};
fold.addEventListener("change", showSettings);
showSettings();
showKey();
show([]);
load();
