// Finding a group by its name; without this script everything is there all the same.
const box = document.getElementById("find");
if (box) {
  box.hidden = false;
  box.addEventListener("input", () => {
    for (const group of document.querySelectorAll("details[data-name]")) {
      group.hidden = !group.dataset.name.toLowerCase().includes(box.value.toLowerCase());
    }
  });
}
