// Parse-checked only: not built and not run on a Mac.
import SwiftUI

@main
struct MatryoshkaApp: App {
  var body: some Scene {
    WindowGroup { StartView() }
  }
}
