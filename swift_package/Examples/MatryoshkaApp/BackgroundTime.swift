#if canImport(UIKit)
  import UIKit
#endif

/// Asks the system for time to finish `work` after the app has gone to the background.
@MainActor
func withBackgroundTime(_ work: () async -> Void) async {
  #if canImport(UIKit)
    let time = BackgroundTime()
    await work()
    time.end()
  #else
    await work()
  #endif
}

#if canImport(UIKit)
  /// Time that the system grants. It is given back when it runs out too, because the system ends an app
  /// that keeps it longer.
  @MainActor
  private final class BackgroundTime {
    private var identifier = UIBackgroundTaskIdentifier.invalid

    init() {
      identifier = UIApplication.shared.beginBackgroundTask { [weak self] in self?.end() }
    }

    func end() {
      guard identifier != .invalid else { return }
      UIApplication.shared.endBackgroundTask(identifier)
      identifier = .invalid
    }
  }
#endif
