export default function Page() {
  return <h1 id="word">first</h1>;
}
