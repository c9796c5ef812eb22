#if canImport(UIKit)
  import UIKit
#endif

/// Asks the system for time to finish `work` after the app has gone to the background.
@MainActor
func withBackgroundTime(_ work: () async -> Void) async {
  #if canImport(UIKit)
    let identifier = UIApplication.shared.beginBackgroundTask()
    await work()
    UIApplication.shared.endBackgroundTask(identifier)
  #else
    await work()
  #endif
}
