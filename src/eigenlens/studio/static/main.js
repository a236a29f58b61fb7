// The page: it brings the modules together, and asks for a frame whenever the state changes.

import { byId, h, complain, copy, debounced, tell } from "./dom.js";
import { get } from "./api.js";
import { store, editOf, fromHash } from "./store.js";
import { Frames } from "./socket.js";
import { Stage } from "./stage.js";
import { Transport } from "./transport.js";
import { Tabs } from "./tabs.js";
import { Sliders } from "./sliders.js";
import { GalleryPage } from "./gallery.js";
import { ExportsPage, linkOf } from "./exports.js";
import { Sets } from "./sets.js";
import { Locks } from "./locks.js";
import { TeachPage } from "./teach.js";
import { DiscoverPage } from "./discover.js";
import { BreedPage } from "./breed.js";
import { PhotoPage } from "./photo.js";
import { Snapshots } from "./snapshots.js";
import { listen } from "./keys.js";
import { followTheme } from "./theme.js";

followTheme();
const frames = new Frames();
const stage = new Stage();
const transport = new Transport();
const tabs = new Tabs();
const axesPage = tabs.add("axes", "Axes");
const sliders = new Sliders(axesPage);
const sets = new Sets(sliders, axesPage);
new Locks(sliders.extra);
const galleryPage = tabs.add("gallery", "Gallery", () => gallery.show());
const gallery = new GalleryPage(galleryPage);
const snapshots = new Snapshots(galleryPage, { stage, open: (state) => open(state) });
const teach = new TeachPage(tabs.add("teach", "Teach", () => teach.show()), { sliders, sets });
const discover = new DiscoverPage(tabs.add("discover", "Discover", () => discover.show()), { sets, tabs, stage, sliders });
const breed = new BreedPage(tabs.add("breed", "Breed", () => breed.show()));
new PhotoPage(tabs.add("photo", "Photo"), { tabs });
const exports = new ExportsPage(tabs.add("exports", "Export", () => exports.show()), { sliders, open: (state) => open(state) });

// --- frames ---

let isHeld = false;

function ask(final = true) {
  const { state } = store;
  if (!state.generator) return;
  const isBefore = isHeld && state.moves.length > 0;
  frames.ask({ edit: editOf(state, isBefore ? { moves: [] } : {}), n: state.n, largest: stage.largest(state.n), final, isBefore });
}

function hold(value) {
  if (value === isHeld) return;
  isHeld = value;
  transport.compare.classList.toggle("held", isHeld);
  ask();
}

const finally_ = debounced(() => ask(true), 160);
store.on("change", ({ live }) => {
  ask(!live);
  if (live) finally_();  // a hand that rests sees full quality
});
store.on("commit", () => {
  byId("undo").disabled = !store.canUndo;
  byId("redo").disabled = !store.canRedo;
  if (tabs.now === "exports") exports.show();
});
frames.addEventListener("frame", ({ detail }) => stage.show(detail).catch(complain));
frames.addEventListener("failed", ({ detail }) => complain(detail.error));
frames.addEventListener("lost", () => tell("the server is away; looking for it …"));
frames.addEventListener("open", () => tell(""));
transport.addEventListener("hold", ({ detail }) => hold(detail));

// --- the header ---

byId("undo").onclick = () => store.undo();
byId("redo").onclick = () => store.redo();
byId("link").onclick = () => copy(linkOf());
byId("generator").onchange = () => open({ generator: byId("generator").value, truncation: store.state.truncation }).catch(complain);
addEventListener("hashchange", () => {
  const state = fromHash(location.hash);
  if (state) open(state).catch(complain);
});

// On a phone the tabs are pinned below the picture, whose controls, and so its height, hang on the generator.
new ResizeObserver(([{ target }]) => document.documentElement.style.setProperty("--pinned", `${target.offsetHeight}px`)).observe(byId("left"));

// --- opening ---

let about = null;
let anatomy = null;

/** Open a state: its generator, then its sliders and its picture. */
async function open(state, known = null) {
  tell("opening …");
  anatomy = known ?? await get("/api/generator", { generator: state.generator });
  byId("generator").value = state.generator;
  const label = anatomy.labels.length && (state.label === undefined || state.label === null) ? 0 : state.label ?? null;
  store.begin({ ...state, label, sets: state.sets?.length ? state.sets : anatomy.sets });
  transport.fit(anatomy);
  sets.readers = about.readers;
  sets.presets = about.presets;
  exports.lack(about.lacks);
  sets.offered = [...new Set([...anatomy.sets, ...anatomy.offered])];
  await sliders.load();
  if (tabs.now !== "axes") tabs.open(tabs.now);
  tell("");
  document.documentElement.dataset.ready = "yes";
}

async function begin() {
  about = await get("/api/studio");
  byId("generator").replaceChildren(...about.generators.map((source) => h("option", { value: source }, source.split("/").pop())));
  const linked = fromHash(location.hash);
  const first = { generator: about.generators[0], seed: 1, truncation: 0.7 };  // nearer the mean than chance has it
  tabs.open("axes");
  try {
    const state = linked?.generator ? linked : first;
    sliders.know(about.tables, about.first.source);
    await open(state, state.generator === about.first.source ? about.first : null);
  } catch (error) {
    if (!linked) throw error;
    complain(error);
    await open(first);
  }
}

listen({ transport, sliders, tabs, hold, snapshot: () => snapshots.take() });
begin().catch(complain);
window.studio = { store, frames, stage, sliders };  // for whoever looks at the page from the console
