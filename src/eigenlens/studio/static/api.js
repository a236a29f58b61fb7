// Requests to the server: JSON in, JSON or a picture out; errors carry the server's own words.

async function answered(response) {
  if (response.ok) return response;
  let said = { error: `the server answered ${response.status}` };
  try {
    said = await response.json();
  } catch { /* not JSON: the status says it */ }
  throw Object.assign(new Error(said.error), { unsupported: said.unsupported });
}

async function sent(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is it still running?");
  }
  return answered(response);
}

const json = (body, signal) => ({
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
});

export const get = async (path, query = {}) => {
  const words = new URLSearchParams(query).toString();
  return (await sent(words ? `${path}?${words}` : path)).json();
};
export const post = async (path, body, signal) => (await sent(path, json(body, signal))).json();
export const blob = async (path, body, signal) => {
  const response = await sent(path, json(body, signal));
  return { blob: await response.blob(), headers: response.headers };
};
export const upload = async (path, query, data) =>
  (await sent(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: data, headers: { "content-type": "application/octet-stream" } })).json();
export const remove = async (path) => (await sent(path, { method: "DELETE" })).json();
