// The OpenAPI description as a page to read, without anything from elsewhere.

import { h, byId } from "./dom.js";

const description = await (await fetch("openapi.json")).json();
const named = (ref) => description.components.schemas[ref.split("/").pop()];

/** The kind of a value in words. */
function kind(schema) {
  if (schema.$ref) return kind(named(schema.$ref));
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(schema.items ?? schema.prefixItems?.[0] ?? {})}`;
  const bounds = [schema.minimum, schema.maximum].some((each) => each !== undefined) ? ` ${schema.minimum ?? ""}…${schema.maximum ?? ""}` : "";
  return `${schema.type ?? "anything"}${bounds}`;
}

function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, value]) =>
    [name, kind(value), schema.required?.includes(name) ? "needed" : value.default === undefined ? "" : JSON.stringify(value.default), value.description ?? ""]);
  return rows.length ? table(rows) : null;
}

const table = (rows) => h("table", { class: "fieldtable" }, rows.map((row) => h("tr", {}, row.map((cell, k) => h(k ? "td" : "th", {}, cell)))));

for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const body = Object.entries(operation.requestBody?.content ?? {})[0];
    const query = (operation.parameters ?? []).map((each) => [each.name, kind(each.schema), each.required ? "needed" : "", each.in]);
    byId("requests").append(h("section", {},
      h("h3", {}, h("code", {}, `${method.toUpperCase()} ${path}`)),
      h("p", {}, operation.description ?? ""),
      query.length ? table(query) : null,
      body ? (body[1].schema.$ref ? fields(named(body[1].schema.$ref)) : h("p", { class: "quiet" }, `a body of ${body[0]}`)) : null));
  }
}
