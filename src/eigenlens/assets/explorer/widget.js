// The explorer in a notebook: the kernel sends the parts, and hears of every Edit.

export default {
  async render({ model, el }) {
    const root = document.createElement("div");
    el.append(root);
    const manifest = model.get("manifest");
    const read = (name) => model.get(name);
    const onEdit = (edit) => {
      model.set("edit", edit ?? {});
      model.save_changes();
    };
    try {
      await mount(root, manifest, await unpackParts(read, manifest), { onEdit });
    } catch (error) {
      console.error(error);
      root.append(`The explorer cannot start here: ${error.message ?? error}`);
    }
  },
};
